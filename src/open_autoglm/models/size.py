# SPDX-License-Identifier: Apache-2.0
"""How large a GLM's weights are in a file, from its architecture alone."""

from __future__ import annotations

from typing import Final

from open_autoglm.models.config import ModelConfig

_SCALE: Final = 4
_HEADER: Final = 110


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
