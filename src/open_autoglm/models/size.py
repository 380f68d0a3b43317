# SPDX-License-Identifier: Apache-2.0
"""How large a GLM is, from its architecture alone: weights in a file and packed in memory, and its KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from open_autoglm.models.config import ModelConfig

_SCALE: Final = 4
_HEADER: Final = 110

_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
_BLOCK_ROWS: Final = 16
_COLUMN_MULTIPLE: Final = 32
_GROUPS: Final = (64, 32)
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class Linear:
    """Matrices of one shape in a model.

    rows: outputs. columns: inputs. copies: in the whole model. used: that one token multiplies with; routed where these
    are chosen token by token. always_float32: kept exact whatever the format, as a router is.
    """

    rows: int
    columns: int
    copies: int
    used: int
    has_bias: bool = False
    always_float32: bool = False

    @property
    def weights(self) -> int:
        """Of one copy."""
        return self.rows * self.columns

    def packed_bytes(self, weights: str) -> int:
        """Bytes of one copy as the native engine packs it, in blocks of 16 rows (`csrc/packing.cpp`).

        weights: a format. 4 bits are counted as that engine rounds them, with a scale and no zero for each group.
        """
        form = "float32" if self.always_float32 else weights
        group = next((size for size in _GROUPS if self.columns % size == 0), _GROUPS[-1])
        multiple = group if form == "int4" else _COLUMN_MULTIPLE
        rows, columns = _up(self.rows, _BLOCK_ROWS), _up(self.columns, multiple)
        size = _up(int(rows * columns * _BYTES[form]), _ALIGNMENT)
        if form == "int8":
            size += _up(rows * _SCALE, _ALIGNMENT)
        if form == "int4":
            size += _up(rows * (columns // group) * 2, _ALIGNMENT)
        return size + (_up(rows * 4, _ALIGNMENT) if self.has_bias else 0)


def linears(config: ModelConfig) -> Iterator[Linear]:
    """The matrices of all layers, as the native engine joins them; the output matrix is not among them."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    yield Linear(query + 2 * key, hidden, layers, layers, has_bias=config.attention_bias)
    yield Linear(hidden, query, layers, layers)
    mixed = sum(config.is_moe_layer(layer) for layer in range(layers))
    dense, inner = layers - mixed, config.intermediate_size
    if dense:
        yield Linear(2 * inner, hidden, dense, dense)
        yield Linear(hidden, inner, dense, dense)
    if mixed:
        expert = config.moe_intermediate_size
        yield Linear(config.num_experts, hidden, mixed, mixed, always_float32=True)
        copies, used = mixed * config.num_experts, mixed * config.num_experts_per_tok
        yield Linear(2 * expert, hidden, copies, used)
        yield Linear(hidden, expert, copies, used)
        if config.num_shared_experts:
            shared = config.num_shared_experts * expert
            yield Linear(2 * shared, hidden, mixed, mixed)
            yield Linear(hidden, shared, mixed, mixed)


def output_linear(config: ModelConfig) -> Linear:
    """The output matrix."""
    return Linear(config.vocab_size, config.hidden_size, 1, 1)


def output_format(config: ModelConfig, weights: str) -> str:
    """The format of the output matrix in the native engine: 8 bits for 4 where it is the embedding table too."""
    return "int8" if weights == "int4" and config.tie_word_embeddings else weights


def packed_bytes(config: ModelConfig, weights: str) -> int:
    """Bytes of all weights as the native engine keeps them in memory. weights: a format."""
    matrices = sum(linear.copies * linear.packed_bytes(weights) for linear in linears(config))
    output = output_linear(config).packed_bytes(output_format(config, weights))
    norms = (4 if config.sandwich_norm else 2) * config.hidden_size + 2 * config.head_dim * config.use_qk_norm
    embedding = 0
    if not config.tie_word_embeddings:
        cell = {"float32": 4, "bfloat16": 2}.get(weights, 1)
        embedding = config.vocab_size * (config.hidden_size * cell + (_SCALE if cell == 1 else 0))
    return matrices + output + embedding + 4 * (config.num_hidden_layers * norms + config.hidden_size)


def kv_numbers_per_token(config: ModelConfig) -> int:
    """Numbers that the KV cache holds of one token, over all layers."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def kv_block_bytes(config: ModelConfig, kv_dtype: str, block_size: int = 16) -> int:
    """Bytes of one page of `block_size` tokens in the native engine's KV cache, over all layers (`csrc/formats.h`).

    kv_dtype: `float32`, `bfloat16`, or `int8`, which has two scales for each token and head.
    """
    width = _up(config.head_dim, 16)
    record = 2 * int(_BYTES[kv_dtype]) * width * block_size + (2 * 4 * block_size if kv_dtype == "int8" else 0)
    return _up(record, _ALIGNMENT) * config.num_key_value_heads * config.num_hidden_layers


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def int8_bytes(config: ModelConfig) -> int:
    """Bytes of `int8.safetensors`: a byte for each weight of a matrix, a float32 scale for each of its rows and for
    each number of a norm. Headers are counted with their usual length; mixtures of experts are not foreseen.
    """
    heads, key_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    rows = heads + 2 * key_heads + config.hidden_size + 2 * config.intermediate_size + config.hidden_size
    norms = (4 if config.sandwich_norm else 2) * config.hidden_size
    bias = heads + 2 * key_heads if config.attention_bias else 0
    matrices = config.num_decoder_parameters() - config.num_hidden_layers * (norms + bias) - config.hidden_size
    floats = config.num_hidden_layers * (rows + norms + bias) + config.hidden_size
    tables = 1 if config.tie_word_embeddings else 2
    embedding = tables * config.vocab_size * (config.hidden_size + _SCALE)
    tensors = config.num_hidden_layers * (12 + 2 * config.sandwich_norm) + 1 + 2 * tables
    return matrices + _SCALE * floats + embedding + tensors * _HEADER
