# SPDX-License-Identifier: Apache-2.0
"""Random weights, packed as the native engine packs real ones: speed depends on shapes and formats alone."""

from __future__ import annotations

from typing import Final

import numpy as np

from open_autoglm.engine import _native
from open_autoglm.engine.backends.native_weights import PackedWeights
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import output_format

RANDOM_TOKENS: Final = 512
"""Tokens, from 0, that a random embedding table has rows for. Other tokens' rows are not touched, and so take no
memory."""

_DEVIATION: Final = 0.02
_DRAWN: Final = 1 << 20
"""Numbers that are drawn for matrices of one width. All of these matrices repeat them: drawing takes ten times as long
as packing."""

_BLOCK_ROWS: Final = 16
_GROUPS: Final = (64, 32)

Source = tuple[str, np.ndarray, np.ndarray | None, np.ndarray | None, int]


class RandomWeights:
    """Makes them for one model.

    form: `float32`, `bfloat16`, `int8` or `int4`. expert_bytes: experts get matrices of their own until these take so
    much; those after them take turns with them, so that a model of hundreds of experts is made in bounded memory.
    """

    def __init__(
        self, config: ModelConfig, form: str, instruction_set: str, team: _native.Team, *, expert_bytes: int
    ) -> None:
        self._config, self._form, self._expert_bytes = config, form, expert_bytes
        self._instruction_set, self._team = instruction_set, team
        self._generator = np.random.default_rng(0)
        self._drawn: dict[tuple[str, int], Source] = {}
        self._experts: list[tuple[_native.Matrix, _native.Matrix]] = []
        self._experts_taken = self._experts_size = 0

    def pack(self) -> PackedWeights:
        """All weights of the model."""
        config, packed = self._config, PackedWeights()
        for index in range(config.num_hidden_layers):
            self._pack_layer(packed, index)
        packed.arrays["final_norm"] = np.ones(config.hidden_size, dtype=np.float32)
        form = output_format(config, self._form)
        packed.matrices["output"] = self._matrix(config.vocab_size, config.hidden_size, form)
        if not config.tie_word_embeddings:
            self._pack_embedding(packed)
        return packed

    def _pack_layer(self, packed: PackedWeights, index: int) -> None:
        config, name = self._config, f"layers.{index}."
        hidden, heads, size = config.hidden_size, config.num_attention_heads, config.head_dim
        norms = {"input_norm": hidden, "feed_forward_norm": hidden}
        if config.sandwich_norm:
            norms |= {"attention_output_norm": hidden, "feed_forward_output_norm": hidden}
        if config.use_qk_norm:
            norms |= {"query_norm": size, "key_norm": size}
        packed.arrays |= {name + norm: np.ones(length, dtype=np.float32) for norm, length in norms.items()}
        rows = (heads + 2 * config.num_key_value_heads) * size
        packed.matrices[f"{name}query_key_value"] = self._matrix(rows, hidden, has_bias=config.attention_bias)
        packed.matrices[f"{name}attention_output"] = self._matrix(hidden, heads * size)
        matrices = packed.matrices
        if not config.is_moe_layer(index):
            matrices[f"{name}gate_up"], matrices[f"{name}down"] = self._feed_forward(config.intermediate_size)
            return
        matrices[f"{name}router"] = self._matrix(config.num_experts, hidden, "float32")
        for expert in range(config.num_experts):
            inner = f"{name}experts.{expert}."
            matrices[f"{inner}gate_up"], matrices[f"{inner}down"] = self._expert()
        if config.num_shared_experts:
            inner, size = f"{name}shared_expert.", config.num_shared_experts * config.moe_intermediate_size
            matrices[f"{inner}gate_up"], matrices[f"{inner}down"] = self._feed_forward(size)

    def _feed_forward(self, size: int) -> tuple[_native.Matrix, _native.Matrix]:
        padded = -(-size // _BLOCK_ROWS) * _BLOCK_ROWS
        hidden = self._config.hidden_size
        return self._matrix(2 * padded, hidden), self._matrix(hidden, size)

    def _expert(self) -> tuple[_native.Matrix, _native.Matrix]:
        # A token multiplies with several experts; they must not be one and the same, which a cache would hold.
        if self._experts_size < self._expert_bytes or len(self._experts) <= self._config.num_experts_per_tok:
            both = self._feed_forward(self._config.moe_intermediate_size)
            self._experts.append(both)
            self._experts_size += sum(matrix.buffer.nbytes for matrix in both)
            return both
        self._experts_taken += 1
        return self._experts[self._experts_taken % len(self._experts)]

    def _matrix(self, rows: int, columns: int, form: str | None = None, *, has_bias: bool = False) -> _native.Matrix:
        form = form or self._form
        source = self._source(form, columns)
        height = len(source[1])
        sources = [_cut(source, min(height, rows - first)) for first in range(0, rows, height)]
        return _native.pack_matrix(
            format=form,
            sources=sources,
            group=_group(columns) if form == "int4" else 0,
            interleaved=False,
            bias=np.zeros(rows, dtype=np.float32) if has_bias else None,
            order=None,
            instruction_set=self._instruction_set,
            team=self._team,
        )

    def _source(self, form: str, columns: int) -> Source:
        """Rows in the type from which packing to `form` is quickest."""
        if (form, columns) not in self._drawn:
            height = max(_BLOCK_ROWS, _DRAWN // columns // _BLOCK_ROWS * _BLOCK_ROWS)
            draw = self._generator
            if form == "int8":
                values = draw.integers(-127, 128, (height, columns), dtype=np.int8)
                scales = np.full(height, _DEVIATION / 64, dtype=np.float32)
                self._drawn[form, columns] = ("int8", values, scales, None, 0)
            elif form == "int4":
                group = _group(columns)
                values, shape = draw.integers(0, 16, (height, columns), dtype=np.uint8), (height, -(-columns // group))
                scales = np.full(shape, _DEVIATION / 4, dtype=np.float32)
                self._drawn[form, columns] = ("int4", values, scales, np.full(shape, 8, dtype=np.uint8), group)
            else:
                self._drawn[form, columns] = ("bfloat16", self._halves(height, columns), None, None, 0)
        return self._drawn[form, columns]

    def _halves(self, rows: int, columns: int) -> np.ndarray:
        """uint16: the upper halves of normal floats."""
        floats = self._generator.standard_normal((rows, columns), dtype=np.float32) * np.float32(_DEVIATION)
        return (floats.view(np.uint32) >> 16).astype(np.uint16)

    def _pack_embedding(self, packed: PackedWeights) -> None:
        config = self._config
        rows = min(RANDOM_TOKENS, config.vocab_size)
        halves = self._halves(rows, config.hidden_size)
        if self._form == "bfloat16":
            first = halves
        elif self._form == "float32":
            first = (halves.astype(np.uint32) << 16).view(np.float32)
        else:
            first = self._generator.integers(-127, 128, halves.shape, dtype=np.int8)
            packed.arrays["embedding_scales"] = np.full(config.vocab_size, _DEVIATION / 64, dtype=np.float32)
        table = np.zeros((config.vocab_size, config.hidden_size), dtype=first.dtype)
        table[:rows] = first
        packed.arrays["embedding"] = table


def _group(columns: int) -> int:
    return next((size for size in _GROUPS if columns % size == 0), _GROUPS[-1])


def _cut(source: Source, rows: int) -> Source:
    kind, values, scales, zeros, group = source
    return (
        kind,
        values[:rows],
        None if scales is None else scales[:rows],
        None if zeros is None else zeros[:rows],
        group,
    )
