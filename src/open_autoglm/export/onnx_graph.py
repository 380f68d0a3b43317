# SPDX-License-Identifier: Apache-2.0
"""A GLM as a self-contained ONNX graph with the names that programs for text generation know.

| input | type and shape |
| --- | --- |
| input_ids | int64[batch_size, sequence_length] |
| attention_mask | int64[batch_size, total_sequence_length], 0 where a token is padding, past ones included |
| position_ids | int64[batch_size, sequence_length] |
| past_key_values.N.key, past_key_values.N.value | float32[batch_size, kv_heads, past_sequence_length, head_dim] |

| output | type and shape |
| --- | --- |
| logits | float32[batch_size, sequence_length, vocab_size] |
| present.N.key, present.N.value | float32[batch_size, kv_heads, total_sequence_length, head_dim] |

All sizes but those of the model are free from run to run; the past may be empty. RoPE's angles are computed in the
graph, so nothing besides these inputs is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from open_autoglm.models.onnx.graph import MICROSOFT, GraphWriter
from open_autoglm.models.onnx.layers import LayerWriter
from open_autoglm.models.onnx.linear import as_int8
from open_autoglm.models.rotary import rotary_frequencies
from open_autoglm.models.weights import WeightReader

_HIDDEN_SCORE: Final = float(np.finfo(np.float32).min)
"""What is added to a score that must not count. Not minus infinity: a row of those alone is not a number."""

_OUTPUT_BLOCK: Final = 32
_EXACT_ACTIVATIONS: Final = 1
"""`accuracy_level` of MatMulNBits that multiplies in float32."""

_FLOAT, _BOOL = 1, 9
"""Element types, as ONNX counts them."""


@dataclass(frozen=True)
class _Step:
    """Values that all layers share.

    flat: the shape [batch_size, sequence_length, -1]. cosines, sines: float32[batch, sequence, rotary_dim / 2].
    mask: float32[batch, 1, 1, sequence, total], to be added to scores.
    """

    flat: str
    cosines: str
    sines: str
    mask: str


def write_graph(
    graph: GraphWriter, reader: WeightReader, precision: str, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Write inputs, layers and outputs. precision: `float32` or `int4`. on_progress: told of each layer written."""
    _Graph(graph, reader, precision).write(on_progress or (lambda done, total: None))


class _Graph:
    def __init__(self, graph: GraphWriter, reader: WeightReader, precision: str) -> None:
        self._graph, self._reader, self._config = graph, reader, reader.config
        self._precision = precision
        self._layers = LayerWriter(graph, reader, precision)

    def write(self, on_progress: Callable[[int, int], None]) -> None:
        graph, config = self._graph, self._config
        token_ids = graph.input("input_ids", np.int64, ["batch_size", "sequence_length"])
        step = self._write_step(token_ids)
        one_row = graph.node("Reshape", token_ids, graph.constant([-1]))
        hidden = self._layers.linear.embedding(one_row, "model.embed_tokens")
        for layer in range(config.num_hidden_layers):
            hidden = self._layers.rest_of_layer(layer, hidden, self._attend(layer, hidden, step))
            self._reader.forget_pages()
            on_progress(layer + 1, config.num_hidden_layers)
        states = self._layers.norm(hidden, "model.norm")
        logits = self._output_matrix(states)
        graph.node("Reshape", logits, step.flat, output="logits")
        graph.output("logits", np.float32, ["batch_size", "sequence_length", config.vocab_size])
        shape = ["batch_size", config.num_key_value_heads, "total_sequence_length", config.head_dim]
        for layer in range(config.num_hidden_layers):
            for part in ("key", "value"):
                graph.output(f"present.{layer}.{part}", np.float32, shape)

    def _write_step(self, token_ids: str) -> _Step:
        graph, config = self._graph, self._config
        given = graph.input("attention_mask", np.int64, ["batch_size", "total_sequence_length"])
        positions = graph.input("position_ids", np.int64, ["batch_size", "sequence_length"])
        past_shape = ["batch_size", config.num_key_value_heads, "past_sequence_length", config.head_dim]
        for layer in range(config.num_hidden_layers):
            for part in ("key", "value"):
                graph.input(f"past_key_values.{layer}.{part}", np.float32, past_shape)
        past = graph.node("Squeeze", graph.node("Shape", "past_key_values.0.key", start=2, end=3))
        total = graph.node("Add", past, graph.node("Squeeze", graph.node("Shape", token_ids, start=1, end=2)))
        zero, one = graph.constant(0), graph.constant(1)
        keys = graph.node("Range", zero, total, one)
        queries = graph.node("Unsqueeze", graph.node("Range", past, total, one), graph.constant([1]))
        causal = graph.node("LessOrEqual", keys, queries)  # [sequence, total]
        real = graph.node("Unsqueeze", graph.node("Cast", given, to=_BOOL), graph.constant([1, 2, 3]))
        visible = graph.node("And", causal, real)  # [batch, 1, 1, sequence, total]
        nothing, hidden_score = graph.constant(0, np.float32), graph.constant(_HIDDEN_SCORE, np.float32)
        frequencies, magnitude = rotary_frequencies(config)
        places = graph.node("Unsqueeze", graph.node("Cast", positions, to=_FLOAT), graph.constant([2]))
        angles = graph.node("Mul", places, graph.constant(frequencies, np.float32))
        turned = [graph.node(operator, angles) for operator in ("Cos", "Sin")]
        if magnitude != 1.0:
            turned = [graph.node("Mul", item, graph.constant(magnitude, np.float32)) for item in turned]
        flat = graph.node("Concat", graph.node("Shape", token_ids), graph.constant([-1]), axis=0)
        return _Step(flat, turned[0], turned[1], graph.node("Where", visible, nothing, hidden_score))

    def _attend(self, layer: int, hidden: str, step: _Step) -> str:
        """hidden: float[batch * sequence, hidden_size]. Returns float[batch * sequence, heads * head_dim]."""
        graph, config = self._graph, self._config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        rows = [graph.node("Reshape", row, step.flat) for row in self._layers.query_key_value(layer, hidden)]
        query = self._layers.rotate(rows[0], heads, step.cosines, step.sines)
        key = self._layers.rotate(rows[1], kv_heads, step.cosines, step.sines)
        keys, values = (
            self._store(layer, part, row) for part, row in (("key", key), ("value", rows[2]))
        )  # [batch, kv_heads, 1, total, head_dim]
        query = graph.node("Mul", query, graph.constant(1 / math.sqrt(head_dim), np.float32))
        query = graph.node("Reshape", query, graph.constant([0, 0, kv_heads, heads // kv_heads, head_dim]))
        query = graph.node("Transpose", query, perm=[0, 2, 3, 1, 4])  # [batch, kv_heads, shared, sequence, head_dim]
        scores = graph.node("MatMul", query, graph.node("Transpose", keys, perm=[0, 1, 2, 4, 3]))
        shares = graph.node("Softmax", graph.node("Add", scores, step.mask), axis=-1)
        mixed = graph.node("Transpose", graph.node("MatMul", shares, values), perm=[0, 3, 1, 2, 4])
        return graph.node("Reshape", mixed, graph.constant([-1, heads * head_dim]))

    def _store(self, layer: int, part: str, row: str) -> str:
        """Append row, float[batch, sequence, kv_heads * head_dim], to the past; returns all with an axis for heads."""
        graph, config = self._graph, self._config
        shape = graph.constant([0, 0, config.num_key_value_heads, config.head_dim])
        new = graph.node("Transpose", graph.node("Reshape", row, shape), perm=[0, 2, 1, 3])
        past, present = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
        graph.node("Concat", past, new, output=present, axis=2)
        return graph.node("Unsqueeze", present, graph.constant([2]))

    def _output_matrix(self, states: str) -> str:
        """The most sensitive matrix: with int4, in 8 bits by row, multiplied in float32 so that no sum overflows."""
        if self._precision == "float32":
            return self._layers.linear.output(states, "lm_head")
        graph = self._graph
        rounded = as_int8(self._reader.linear("lm_head"))
        rows, columns = rounded.values.shape
        codes = (rounded.values.astype(np.int16) + 128).astype(np.uint8)
        codes = np.pad(codes, ((0, 0), (0, -columns % _OUTPUT_BLOCK)), constant_values=128)
        blocks = codes.reshape(rows, -1, _OUTPUT_BLOCK)
        scales = np.repeat(rounded.scale[:, None], blocks.shape[1], axis=1)
        return graph.node(
            "MatMulNBits",
            states,
            graph.weight("lm_head.int8", blocks),
            graph.weight("lm_head.scales", np.ascontiguousarray(scales)),
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=8,
            block_size=_OUTPUT_BLOCK,
            accuracy_level=_EXACT_ACTIVATIONS,
        )
