# SPDX-License-Identifier: Apache-2.0
"""Which tensors a GLM has, under transformers' names, and where each lies in a file of another layout."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from open_autoglm.models.config import ModelConfig

_LAYER: Final = re.compile(r"(?:model|transformer\.encoder)\.layers\.(\d+)\.")
_EXPERT: Final = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj")
_CHATGLM_MARK: Final = "transformer.encoder."
CHATGLM_NORM: Final = "transformer.encoder.final_layernorm.weight"
"""The tensor by which the layout of ChatGLM repositories is known."""

_CACHE_SCALES: Final = (".self_attn.k_scale", ".self_attn.v_scale")
"""Of a KV cache in 8-bit floating point, per tensor: other engines want them, ours have scales for each token."""

_CHATGLM_MODULES: Final = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
}
_CHATGLM_LAYER_MODULES: Final = {
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


@dataclass(frozen=True)
class Place:
    """Where a module's numbers lie in the files.

    module: the stored name, without `.weight`. rows: the part of its outputs, None for all. expert: the index into
    a tensor that stacks all experts and is stored under the bare name `module`; None elsewhere.
    """

    module: str
    rows: slice | None = None
    expert: int | None = None

    def tensor(self, part: str) -> str:
        """The stored name of `weight`, `bias`, `qweight`..."""
        return self.module if self.expert is not None else f"{self.module}.{part}"


def tensor_shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a model under transformers' name, with its shape; a tied `lm_head.weight` is left out.

    One after the other, so that a reader can stop early at a `config.json` that claims a million layers.
    """
    hidden = config.hidden_size
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    norms = ["input_layernorm", "post_attention_layernorm"]
    if config.sandwich_norm:
        norms += ["post_self_attn_layernorm", "post_mlp_layernorm"]
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name, size in (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value)):
            yield f"{prefix}self_attn.{name}.weight", (size, hidden)
            if config.attention_bias:
                yield f"{prefix}self_attn.{name}.bias", (size,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, query)
        if config.use_qk_norm:
            yield f"{prefix}self_attn.q_norm.weight", (config.head_dim,)
            yield f"{prefix}self_attn.k_norm.weight", (config.head_dim,)
        if config.is_moe_layer(layer):
            yield f"{prefix}mlp.gate.weight", (config.num_experts, hidden)
            yield f"{prefix}mlp.gate.e_score_correction_bias", (config.num_experts,)
            for expert in range(config.num_experts):
                yield from _gated(f"{prefix}mlp.experts.{expert}.", hidden, config.moe_intermediate_size)
            shared = config.num_shared_experts * config.moe_intermediate_size
            yield from _gated(f"{prefix}mlp.shared_experts.", hidden, shared)
        elif config.is_mixture:
            yield from _gated(f"{prefix}mlp.", hidden, config.intermediate_size)
        else:
            yield f"{prefix}mlp.gate_up_proj.weight", (2 * config.intermediate_size, hidden)
            yield f"{prefix}mlp.down_proj.weight", (hidden, config.intermediate_size)
        for norm in norms:
            yield f"{prefix}{norm}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def is_ignored(stored: str, config: ModelConfig) -> bool:
    """Whether a stored tensor is no weight of the decoder: RoPE's constants, scales of caches, further predictors."""
    layer = _LAYER.match(stored)
    if layer and int(layer[1]) >= config.num_hidden_layers:
        return True
    if stored.endswith(("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", *_CACHE_SCALES)):
        return True
    return config.tie_word_embeddings and stored.startswith(("lm_head.", "transformer.output_layer."))


def place_of(module: str, config: ModelConfig, stored: Collection[str]) -> Place:
    """Where the module of that transformers name lies, given the names of all stored tensors."""
    if expert := _EXPERT.fullmatch(module):
        fused = f"{expert[1]}.{'down_proj' if expert[3] == 'down' else 'gate_up_proj'}"
        if fused not in stored:
            return Place(module)
        size = config.moe_intermediate_size
        rows = {"gate": slice(0, size), "up": slice(size, 2 * size), "down": None}[expert[3]]
        return Place(fused, rows, int(expert[2]))
    if CHATGLM_NORM not in stored:
        return Place(module)
    if module in _CHATGLM_MODULES:
        return Place(_CHATGLM_MODULES[module])
    _, _, layer, name = module.split(".", 3)
    prefix = f"{_CHATGLM_MARK}layers.{layer}."
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    fused_rows = {
        "self_attn.q_proj": slice(0, query),
        "self_attn.k_proj": slice(query, query + key_value),
        "self_attn.v_proj": slice(query + key_value, query + 2 * key_value),
    }
    if name in fused_rows:
        return Place(f"{prefix}self_attention.query_key_value", fused_rows[name])
    return Place(prefix + _CHATGLM_LAYER_MODULES.get(name, name))


def stored_shape(place: Place, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """The shape of the whole stored tensor of which `place` takes the `shape` of one transformers tensor."""
    if place.expert is not None:
        rows = shape[0] if place.rows is None else 2 * config.moe_intermediate_size
        return (config.num_experts, rows, *shape[1:])
    if place.rows is not None:
        return ((config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim, *shape[1:])
    return shape


def _gated(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}gate_proj.weight", (inner, hidden)
    yield f"{prefix}up_proj.weight", (inner, hidden)
    yield f"{prefix}down_proj.weight", (hidden, inner)
