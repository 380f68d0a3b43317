# SPDX-License-Identifier: Apache-2.0
"""The decoder of Glm, Glm4 and Glm4Moe as ONNX operators, over a paged KV cache; inputs as `signature` describes.

Linear layers and norms see the tokens as one flat row. Attention alone knows sequences: it lays their queries out in a
padded block, gathers each sequence's blocks of the cache, and lays the result back into the row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.onnx import signature
from open_autoglm.models.onnx.graph import GraphWriter
from open_autoglm.models.onnx.layers import LayerWriter
from open_autoglm.models.weights import WeightReader

_HIDDEN_SCORE: Final = float(np.finfo(np.float32).min)
"""What is added to a score that must not count. Not minus infinity: a row of those alone is not a number."""


@dataclass(frozen=True)
class _Step:
    """Values that all layers of one run share.

    cosines, sines: float32[1, tokens, rotary_dim / 2]. places: int64[kv_heads, tokens, 3], where ScatterND puts the
    new keys. mask: float32[sequences, queries * heads_per_key, keys], to be added to scores.
    """

    cosines: str
    sines: str
    places: str
    mask: str


def write_decoder(graph: GraphWriter, reader: WeightReader, weights: str) -> None:
    """Write inputs, layers and outputs. weights: `float32`, `int8` or `int4`."""
    _Decoder(graph, reader, weights).write()


class _Decoder:
    def __init__(self, graph: GraphWriter, reader: WeightReader, weights: str) -> None:
        self._graph = graph
        self._config: ModelConfig = reader.config
        self._layers = LayerWriter(graph, reader, weights)

    def write(self) -> None:
        graph, config = self._graph, self._config
        token_ids = graph.input(signature.TOKEN_IDS, np.int64, ["tokens"])
        step = self._write_step()
        output_rows = graph.input(signature.OUTPUT_ROWS, np.int64, ["outputs"])
        logit_rows = graph.input(signature.LOGIT_ROWS, np.int64, ["logits"])
        hidden = self._layers.linear.embedding(token_ids, "model.embed_tokens")
        for layer in range(config.num_hidden_layers):
            mixed = self._attend(layer, hidden, step)
            if layer == config.num_hidden_layers - 1:  # nothing after it needs the other tokens
                mixed, hidden = graph.node("Gather", mixed, output_rows), graph.node("Gather", hidden, output_rows)
            hidden = self._layers.rest_of_layer(layer, hidden, mixed)
        states = self._layers.norm(hidden, "model.norm")
        logits = self._layers.linear.output(graph.node("Gather", states, logit_rows), "lm_head")
        graph.node("Identity", logits, output=signature.LOGITS)
        graph.output(signature.LOGITS, np.float32, ["logits", config.vocab_size])
        graph.node("Identity", states, output=signature.HIDDEN_STATES)
        graph.output(signature.HIDDEN_STATES, np.float32, ["outputs", config.hidden_size])

    def _write_step(self) -> _Step:
        graph, config = self._graph, self._config
        kv_heads, shared = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        positions = graph.input(signature.POSITIONS, np.int64, ["tokens"])
        angles = ["tokens", config.rotary_dim // 2]
        cosines = graph.input(signature.COSINES, np.float32, angles)
        sines = graph.input(signature.SINES, np.float32, angles)
        slots = graph.input(signature.SLOT_MAPPING, np.int64, ["tokens"])
        tables = graph.input(signature.BLOCK_TABLES, np.int64, ["sequences", "table_blocks"])
        query_rows = graph.input(signature.QUERY_ROWS, np.int64, ["sequences", "queries"])
        visible_keys = graph.input(signature.VISIBLE_KEYS, np.bool_, ["masks", "masked_queries", "masked_keys"])
        graph.input(signature.TOKEN_PLACES, np.int64, ["tokens"])
        cache = [kv_heads, "blocks", "block_size", config.head_dim]
        for layer in range(config.num_hidden_layers):
            for name in signature.cache_names(layer):
                graph.input(name, np.float32, cache)
        block_size = graph.node("Shape", signature.cache_names(0)[0], start=2, end=3)
        # places: kv_head, block, offset of every new key.
        places = [
            graph.node("Unsqueeze", graph.node(operator, slots, block_size), graph.constant([1]))
            for operator in ("Div", "Mod")
        ]
        place = graph.node("Concat", *places, axis=1)
        num_tokens = graph.node("Shape", slots)
        head = graph.constant(np.arange(kv_heads)[:, None, None])
        one, heads = graph.constant([1]), graph.constant([kv_heads])
        heads_of = graph.node("Expand", head, graph.node("Concat", one, num_tokens, one, axis=0))
        places_of = graph.node("Expand", place, graph.node("Concat", heads, num_tokens, graph.constant([2]), axis=0))
        # mask: the key at place j of a sequence is seen by queries from position j on, unless it is hidden.
        table_blocks = graph.node("Shape", tables, start=1, end=2)
        num_keys = graph.node("Squeeze", graph.node("Mul", table_blocks, block_size))
        keys = graph.node("Range", graph.constant(0), num_keys, graph.constant(1))
        seen_to = graph.node("Gather", positions, query_rows)
        visible = graph.node("LessOrEqual", keys, graph.node("Unsqueeze", seen_to, graph.constant([2])))
        visible = graph.node("And", visible, visible_keys)
        if shared > 1:  # the heads that share a key head are laid out as further queries of it
            visible = graph.node("Unsqueeze", visible, graph.constant([2]))
            visible = graph.node("Expand", visible, graph.constant([1, 1, shared, 1]))
            sizes = graph.node("Concat", graph.constant([0, -1]), graph.node("Reshape", num_keys, one), axis=0)
            visible = graph.node("Reshape", visible, sizes)
        hidden_score = graph.constant(_HIDDEN_SCORE, np.float32)
        return _Step(
            cosines=graph.node("Unsqueeze", cosines, graph.constant([0])),
            sines=graph.node("Unsqueeze", sines, graph.constant([0])),
            places=graph.node("Concat", heads_of, places_of, axis=2),
            mask=graph.node("Where", visible, graph.constant(0, np.float32), hidden_score),
        )

    def _attend(self, layer: int, hidden: str, step: _Step) -> str:
        """hidden: float[tokens, hidden_size]. Returns float[tokens, heads * head_dim], before the output matrix."""
        graph, config = self._graph, self._config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        shared = heads // kv_heads
        query, key, value = self._layers.query_key_value(layer, hidden)
        query = self._rotate(query, heads, step)
        key = graph.node("Reshape", self._rotate(key, kv_heads, step), graph.constant([-1, kv_heads, head_dim]))
        value = graph.node("Reshape", value, graph.constant([-1, kv_heads, head_dim]))
        key_name, value_name = signature.cache_names(layer)
        keys = self._store(key_name, key, step)
        values = self._store(value_name, value, step)
        scaled = graph.node("Mul", query, graph.constant(1 / math.sqrt(head_dim), np.float32))
        scaled = graph.node("Reshape", scaled, graph.constant([-1, heads * head_dim]))
        padded = graph.node("Gather", scaled, signature.QUERY_ROWS)  # [sequences, queries, heads * head_dim]
        padded = graph.node("Reshape", padded, graph.constant([0, 0, kv_heads, shared, head_dim]))
        padded = graph.node("Transpose", padded, perm=[2, 0, 1, 3, 4])
        padded = graph.node("Reshape", padded, graph.constant([kv_heads, 0, -1, head_dim]))
        scores = graph.node("MatMul", padded, graph.node("Transpose", keys, perm=[0, 1, 3, 2]))
        shares = graph.node("Softmax", graph.node("Add", scores, step.mask), axis=-1)
        mixed = graph.node("MatMul", shares, values)  # [kv_heads, sequences, queries * shared, head_dim]
        mixed = graph.node("Reshape", mixed, graph.constant([kv_heads, 0, -1, shared, head_dim]))
        mixed = graph.node("Transpose", mixed, perm=[1, 2, 0, 3, 4])
        mixed = graph.node("Reshape", mixed, graph.constant([-1, heads * head_dim]))
        return graph.node("Gather", mixed, signature.TOKEN_PLACES)

    def _store(self, cache: str, rows: str, step: _Step) -> str:
        """Put rows, float[tokens, kv_heads, head_dim], into the cache; returns all that the sequences have in it.

        That is float[kv_heads, sequences, table_blocks * block_size, head_dim], copied a block at a time.
        """
        graph, config = self._graph, self._config
        by_head = graph.node("Transpose", rows, perm=[1, 0, 2])
        stored = graph.node("ScatterND", cache, step.places, by_head, output=signature.output_name(cache))
        shape = [config.num_key_value_heads, "blocks", "block_size", config.head_dim]
        graph.output(stored, np.float32, shape)
        gathered = graph.node("Gather", stored, signature.BLOCK_TABLES, axis=1)
        return graph.node("Reshape", gathered, graph.constant([config.num_key_value_heads, 0, -1, config.head_dim]))

    def _rotate(self, row: str, heads: int, step: _Step) -> str:
        """row: float[tokens, heads * head_dim]. Returns float[1, tokens, heads * head_dim]."""
        whole = self._graph.node("Unsqueeze", row, self._graph.constant([0]))
        return self._layers.rotate(whole, heads, step.cosines, step.sines)
