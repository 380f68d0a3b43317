# SPDX-License-Identifier: Apache-2.0
"""Weights with which a small GLM can copy from its input before it has learnt anything.

Answers of most tasks are made of pieces of the input. A decoder copies by two heads in a row: one writes to each token
what stood before it, the next looks for the token that followed the current one and writes that (Olsson et al. 2022,
induction heads). From random weights a small model finds this late, and the time until then is most of a short
training. Here it begins with one such pair, as a slight preference that training may keep, move or drop:

* values are read by orthogonal rows and written back by their transpose, so that a head of any layer but the first
  adds the very token that it looks at (after the mimetic initialisation of Trockman and Kolter 2023);
* in the first layer the biases of one head make it look one token back: with RoPE a constant query and key have a
  product that depends on their distance alone;
* in the second one head compares the current token with what that head wrote, in those parts of a head that RoPE
  leaves alone or hardly turns;
* embeddings are as large as what the layers write, and do not drown in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.rotary import rotary_frequencies

if TYPE_CHECKING:
    from open_autoglm.models.glm import Decoder, GlmForCausalLM, SelfAttention

_WRITTEN: Final = 0.2
"""What layers write at the beginning, beside `scaled_normal`."""

_COPIED: Final = 0.5
"""What heads write of the token that they look at."""

_LOOK_BACK: Final = 3.0
"""By how much the score of the token before exceeds its neighbours', summed over RoPE's frequencies."""

_MATCH: Final = 1.0
"""The score of a token that matches, beside what the other tokens have."""

_USUAL: Final = 0.3
"""What is left of the random weights in heads that are given a purpose."""

_SLOW: Final = 1 / 128
"""Radians per token: parts of a head that turn no faster than this still match at the length of an example."""

_AMPLITUDES: Final = (1.0, 0.7, 0.5, 0.3)
"""Of RoPE's fastest frequencies in the head that looks back; they tell neighbours apart, the slow ones do not."""

_SANDWICH: Final = 0.3
"""Norms after a block (GLM-4-0414) begin here, and in the first layer as low as embeddings, which drown otherwise."""


def embedding_deviation(hidden_size: int) -> float:
    """Of a normal distribution: with it a normalised state has logits of deviation one, where embeddings are tied."""
    return 1 / math.sqrt(hidden_size)


@torch.no_grad()
def prepare_copying(decoder: Decoder, config: ModelConfig, generator: torch.Generator) -> None:
    """Turn weights that `scaled_normal` made into ones that copy.

    decoder: its embeddings already have `embedding_deviation`. generator: of the orthogonal matrices.
    Without biases in attention, or with norms on queries and keys, no head looks back, and the rest is done.
    """
    layers = decoder.decoder_layers()
    hidden_size = config.hidden_size
    for number, layer in enumerate(layers):
        attention = layer.self_attn
        attention.o_proj.weight.mul_(_WRITTEN)
        for name, parameter in layer.mlp.named_parameters():
            if "down_proj" in name:
                parameter.mul_(_WRITTEN)
        for norm in (layer.post_self_attn_layernorm, layer.post_mlp_layernorm):
            if not isinstance(norm, nn.Identity):
                norm.weight.fill_(_SANDWICH if number > 0 else embedding_deviation(hidden_size))
        if number > 0:
            _write_what_is_read(attention, generator)
    if len(layers) < 2 or config.use_qk_norm or not config.attention_bias:
        return
    first, second = layers[0].self_attn, layers[1].self_attn
    frequencies = torch.from_numpy(rotary_frequencies(config)[0])
    read = _orthogonal(first.head_dim, hidden_size, generator)
    written = _orthogonal(first.head_dim, hidden_size, generator)
    _look_back(first, frequencies)
    group = _group(first)
    first.v_proj.weight[: first.head_dim] = read
    scale = embedding_deviation(hidden_size) * math.sqrt(hidden_size / first.head_dim) / group
    first.o_proj.weight[:, : group * first.head_dim] = scale * written.T.repeat(1, group)
    _look_for(second, read, written, frequencies)


@torch.no_grad()
def share_embeddings(model: GlmForCausalLM, twins: Sequence[tuple[int, int]], generator: torch.Generator) -> None:
    """Let tokens that are one word begin alike, so that one can be copied as the other.

    twins: pairs of ids, the word with a space before it and the word alone. The former becomes the latter plus what
    all of them have in common: their space. An output matrix of its own gets the same.
    """
    if not twins:
        return
    weight = model.model.embed_tokens.weight
    spaced, bare = (torch.tensor([pair[side] for pair in twins], device=weight.device) for side in (0, 1))
    space = torch.empty(weight.shape[1]).normal_(0.0, float(weight.std()), generator=generator).to(weight.device)
    weight[spaced] = (weight[bare] + 0.5 * space) / math.sqrt(1.25)
    model.lm_head.weight.copy_(weight)


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)


def _group(attention: SelfAttention) -> int:
    """Query heads for each key head."""
    return attention.q_proj.weight.shape[0] // attention.k_proj.weight.shape[0]


def _write_what_is_read(attention: SelfAttention, generator: torch.Generator) -> None:
    size, columns = attention.v_proj.weight.shape
    group = _group(attention)
    values = _orthogonal(size, columns, generator)
    attention.v_proj.weight.copy_(values)
    heads = values.unflatten(0, (-1, attention.head_dim)).repeat_interleave(group, 0)
    attention.o_proj.weight.copy_(_COPIED / group * heads.flatten(0, 1).T)


def _look_back(attention: SelfAttention, frequencies: Tensor) -> None:
    """Give the first key head, and the query heads that use it, constants whose product is largest one token back."""
    size, half = attention.head_dim, len(frequencies)
    amplitudes = torch.zeros(half)
    known = torch.tensor(_AMPLITUDES)[:half]
    amplitudes[: len(known)] = known
    gap = float((amplitudes.square() * (1 - frequencies.cos())).sum())
    amplitudes *= math.sqrt(_LOOK_BACK * math.sqrt(size) / gap)
    query, key = torch.zeros(size), torch.zeros(size)
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if attention.interleaved
        else (slice(0, half), slice(half, 2 * half))
    )
    query[first] = amplitudes
    key[first], key[second] = amplitudes * frequencies.cos(), amplitudes * frequencies.sin()
    group = _group(attention)
    attention.q_proj.bias[: group * size] = query.repeat(group)
    attention.k_proj.bias[:size] = key
    attention.q_proj.weight[: group * size] *= _USUAL
    attention.k_proj.weight[:size] *= _USUAL


def _look_for(attention: SelfAttention, read: Tensor, written: Tensor, frequencies: Tensor) -> None:
    """Let the first key head hold what stood before each token, and its query heads ask for the current token.

    read, written: float[head_dim, hidden_size], how the head that looks back reads a token and where it writes it.
    """
    size, half = attention.head_dim, len(frequencies)
    still = torch.ones(size)
    slow = (frequencies <= _SLOW).float()
    if attention.interleaved:
        still[: 2 * half] = slow.repeat_interleave(2)
    else:
        still[: 2 * half] = slow.repeat(2)
    scale = math.sqrt(_MATCH * math.sqrt(size)) * still[:, None]
    group = _group(attention)
    queries, keys = attention.q_proj.weight[: group * size], attention.k_proj.weight[:size]
    queries.mul_(_USUAL * 0.6).add_((scale * read).repeat(group, 1))
    keys.mul_(_USUAL * 0.6).add_(scale * written)
