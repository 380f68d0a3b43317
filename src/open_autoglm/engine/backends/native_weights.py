# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint's weights to the packed matrices of the native engine, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from open_autoglm.engine import _native
from open_autoglm.models.weight_types import DenseWeight, Int4Weight, Int8Weight
from open_autoglm.models.weights import WeightReader

Weight = DenseWeight | Int8Weight | Int4Weight

_GROUPS: Final = (64, 32)
"""Columns that share a scale where we round to 4 bits ourselves: the first that divides the columns."""


@dataclass
class PackedWeights:
    """Everything that the engine keeps of a model.

    matrices: by name, such as `layers.0.query_key_value`. arrays: norms, the router's correction, the embedding table.
    """

    matrices: dict[str, _native.Matrix] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights as they lie in memory."""
        buffers = [matrix.buffer for matrix in self.matrices.values()]
        return sum(array.nbytes for array in (*buffers, *self.arrays.values()))


class Packer:
    """Packs the matrices of one checkpoint.

    format: `float32`, `bfloat16`, `int8` or `int4`. Layers that the checkpoint has in 4 bits stay as they are unless
    the format is `int8`.
    """

    def __init__(self, reader: WeightReader, format: str, instruction_set: str, team: _native.Team) -> None:  # noqa: A002
        self._reader, self._format = reader, format
        self._instruction_set, self._team = instruction_set, team

    def pack(self) -> PackedWeights:
        """Read and pack every weight. Raises CheckpointError for what the checkpoint has wrong."""
        reader, config = self._reader, self._reader.config
        packed = PackedWeights()
        for index in range(config.num_hidden_layers):
            self._pack_layer(packed, index)
        packed.arrays["final_norm"] = self._vector("model.norm.weight")
        # A table that is also the output matrix feeds both ends of the model: 8 bits, where others get 4.
        tied_format = "int8" if self._format == "int4" else self._format
        output_format = tied_format if config.tie_word_embeddings else self._format
        output = reader.linear("lm_head")
        if isinstance(output, Int8Weight) and output_format == "int4":
            output_format = "int8"  # as a build stored it
        packed.matrices["output"] = self._matrix([output], format=output_format)
        if not config.tie_word_embeddings:
            self._pack_embedding(packed, reader.linear("model.embed_tokens"))
        return packed

    def _pack_layer(self, packed: PackedWeights, index: int) -> None:
        reader, config = self._reader, self._reader.config
        theirs, ours = f"model.layers.{index}.", f"layers.{index}."
        norms = {
            "input_norm": "input_layernorm",
            "feed_forward_norm": "post_attention_layernorm",
            "attention_output_norm": "post_self_attn_layernorm",
            "feed_forward_output_norm": "post_mlp_layernorm",
            "query_norm": "self_attn.q_norm",
            "key_norm": "self_attn.k_norm",
        }
        for name, source in norms.items():
            if reader.has(f"{theirs}{source}.weight"):
                packed.arrays[ours + name] = self._vector(f"{theirs}{source}.weight")
        attention = f"{theirs}self_attn."
        parts = [reader.linear(f"{attention}{name}_proj") for name in "qkv"]
        bias = None
        if reader.has(f"{attention}q_proj.bias"):
            bias = np.concatenate([self._vector(f"{attention}{name}_proj.bias") for name in "qkv"])
        packed.matrices[ours + "query_key_value"] = self._matrix(parts, bias=bias)
        packed.matrices[ours + "attention_output"] = self._matrix([reader.linear(f"{attention}o_proj")])
        if not config.is_moe_layer(index):
            self._pack_feed_forward(packed, f"{theirs}mlp.", ours)
            return
        router = reader.linear(f"{theirs}mlp.gate")
        packed.matrices[ours + "router"] = self._matrix([router], format="float32")
        correction = f"{theirs}mlp.gate.e_score_correction_bias"
        if reader.has(correction):
            packed.arrays[ours + "router_correction"] = self._vector(correction)
        for expert in range(config.num_experts):
            self._pack_feed_forward(packed, f"{theirs}mlp.experts.{expert}.", f"{ours}experts.{expert}.", alike=True)
        if config.num_shared_experts:
            self._pack_feed_forward(packed, f"{theirs}mlp.shared_experts.", f"{ours}shared_expert.", alike=True)

    def _pack_feed_forward(self, packed: PackedWeights, theirs: str, ours: str, *, alike: bool = False) -> None:
        """alike: experts share their activations, so an order of columns of their own is undone."""
        reader = self._reader
        if reader.has(f"{theirs}gate_up_proj.weight"):
            both = reader.linear(f"{theirs}gate_up_proj")
            half = both.shape[0] // 2
            parts = [_rows(both, slice(None, half)), _rows(both, slice(half, None))]
        else:
            parts = [reader.linear(f"{theirs}gate_proj"), reader.linear(f"{theirs}up_proj")]
        packed.matrices[ours + "gate_up"] = self._matrix(parts, interleaved=True, alike=alike)
        packed.matrices[ours + "down"] = self._matrix([reader.linear(f"{theirs}down_proj")], alike=alike)

    def _matrix(
        self,
        parts: Sequence[Weight],
        *,
        format: str | None = None,  # noqa: A002
        bias: np.ndarray | None = None,
        interleaved: bool = False,
        alike: bool = False,
    ) -> _native.Matrix:
        order = None
        chosen = format or self._format
        if all(isinstance(part, Int8Weight) for part in parts) and format is None:
            chosen = "int8"  # as they are stored
        elif all(isinstance(part, Int4Weight) for part in parts) and chosen != "int8" and format is None:
            order = _common_order(parts)
            if _can_stay(parts) and not (alike and order is not None):
                chosen = "int4"
            else:  # 8 bits hold what 4 did, whatever its groups
                parts, order, chosen = [DenseWeight(part.float32()) for part in parts], None, "int8"
        elif len({_type_name(part) for part in parts}) > 1 or isinstance(parts[0], Int4Weight):
            parts = [DenseWeight(part.float32()) for part in parts]
        columns = parts[0].shape[1]
        group = next((size for size in _GROUPS if columns % size == 0), _GROUPS[-1])
        return _native.pack_matrix(
            format=chosen,
            sources=[_source(part) for part in parts],
            group=group if chosen == "int4" else 0,
            interleaved=interleaved,
            bias=bias,
            order=order,
            instruction_set=self._instruction_set,
            team=self._team,
        )

    def _pack_embedding(self, packed: PackedWeights, table: Weight) -> None:
        """The table stays row after row, because a token takes one row of it."""
        if self._format == "float32":
            packed.arrays["embedding"] = np.ascontiguousarray(table.float32())
        elif self._format == "bfloat16":
            packed.arrays["embedding"] = _bfloat16(table)
        elif isinstance(table, Int8Weight):
            packed.arrays["embedding"] = np.ascontiguousarray(table.values)
            packed.arrays["embedding_scales"] = np.ascontiguousarray(table.scale, dtype=np.float32)
        else:
            values, scales = _round_rows(table)
            packed.arrays["embedding"], packed.arrays["embedding_scales"] = values, scales

    def _vector(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._reader.dense(name).float32())


def _rows(weight: Weight, rows: slice) -> Weight:
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.values[rows], weight.is_bfloat16)
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values[rows], weight.scale[rows])
    return Int4Weight(
        weight.values[rows], weight.scales[rows], weight.zeros[rows], weight.group_size, weight.column_order
    )


def _common_order(parts: Sequence[Weight]) -> np.ndarray | None:
    """The order of the columns of the first of int4 parts."""
    return parts[0].column_order if isinstance(parts[0], Int4Weight) else None


def _can_stay(parts: Sequence[Weight]) -> bool:
    """Whether int4 parts have groups that the kernels take, and one size and order of columns."""
    first = parts[0]
    for part in parts:
        if not isinstance(part, Int4Weight) or not isinstance(first, Int4Weight):
            return False
        if part.group_size != first.group_size or part.group_size % _GROUPS[-1]:
            return False
        ours, theirs = first.column_order, part.column_order
        if (ours is None) != (theirs is None) or (
            ours is not None and theirs is not None and not np.array_equal(ours, theirs)
        ):
            return False
    return True


def _type_name(weight: Weight) -> str:
    if isinstance(weight, Int8Weight):
        return "int8"
    if isinstance(weight, Int4Weight):
        return "int4"
    return "bfloat16" if weight.is_bfloat16 else weight.values.dtype.name


def _source(weight: Weight) -> tuple[str, np.ndarray, np.ndarray | None, np.ndarray | None, int]:
    values = np.ascontiguousarray(weight.values)
    if isinstance(weight, Int8Weight):
        return ("int8", values, np.ascontiguousarray(weight.scale, dtype=np.float32), None, 0)
    if isinstance(weight, Int4Weight):
        scales = np.ascontiguousarray(weight.scales, dtype=np.float32)
        return ("int4", values, scales, np.ascontiguousarray(weight.zeros), weight.group_size)
    return (_type_name(weight), values, None, None, 0)


_STRETCH: Final = 4096
"""Rows of an embedding table that are widened at a time, so that a large one never lies in memory in float32."""


def _bfloat16(table: Weight) -> np.ndarray:
    if isinstance(table, DenseWeight) and table.is_bfloat16:
        return np.ascontiguousarray(table.values)
    result = np.empty(table.shape, dtype=np.uint16)
    for first in range(0, table.shape[0], _STRETCH):
        bits = _rows(table, slice(first, first + _STRETCH)).float32().view(np.uint32)
        result[first : first + _STRETCH] = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return result


def _round_rows(table: Weight) -> tuple[np.ndarray, np.ndarray]:
    """int8[rows, columns] and float32[rows], as `models.quantized_linear.round_to_int8` does."""
    values = np.empty(table.shape, dtype=np.int8)
    scales = np.empty(table.shape[0], dtype=np.float32)
    for first in range(0, table.shape[0], _STRETCH):
        floats = _rows(table, slice(first, first + _STRETCH)).float32()
        scale = np.maximum(np.abs(floats).max(axis=1), 1e-12) / 127
        scales[first : first + _STRETCH] = scale
        values[first : first + _STRETCH] = np.rint(floats / scale[:, None]).clip(-127, 127)
    return values, scales


def layer_parts(packed: PackedWeights, index: int, num_experts: int) -> dict[str, Any]:
    """What `_native.Model.set_layer` takes for a layer. num_experts: 0 for a dense model."""
    prefix = f"layers.{index}."
    parts: dict[str, Any] = {}
    for name, array in packed.arrays.items():
        if name.startswith(prefix):
            parts[name.removeprefix(prefix)] = array
    matrices = packed.matrices
    for name in ("query_key_value", "attention_output", "router"):
        if prefix + name in matrices:
            parts[name] = matrices[prefix + name]

    def feed_forward(inner: str) -> tuple[_native.Matrix, _native.Matrix]:
        return matrices[f"{prefix}{inner}gate_up"], matrices[f"{prefix}{inner}down"]

    if "router" not in parts:
        parts["feed_forward"] = feed_forward("")
        return parts
    parts["experts"] = [feed_forward(f"experts.{expert}.") for expert in range(num_experts)]
    if f"{prefix}shared_expert.down" in matrices:
        parts["shared_expert"] = feed_forward("shared_expert.")
    return parts
