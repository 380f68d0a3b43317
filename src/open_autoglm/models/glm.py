# SPDX-License-Identifier: Apache-2.0
"""The GLM decoder in PyTorch: one readable definition for training, reference and the torch backend.

Tokens of a batch lie in one flat row, `[num_tokens]`, whatever sequences they belong to: linear layers and norms
then never touch padding. Only attention has to know where sequences begin; it is handed in as an `Attention`.
Source: Du et al. 2022 (GLM), GLM team 2024 (ChatGLM: a family), 2025 (GLM-4.5).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.copying_initialization import prepare_copying
from open_autoglm.models.experts import GatedFeedForward, MixtureOfExperts
from open_autoglm.models.initialization import initialize
from open_autoglm.models.rotary_embedding import rotary_tables, rotate
from open_autoglm.models.training_functions import (
    PaddedLayout,
    can_use,
    gated_silu,
    root_mean_square_norm,
    short_attention,
)

_SHORT: Final = 192
"""Tokens of the longest sequence up to which attention keeps all its weights at once while it trains on a CPU."""

_DRAWS: Final = 4
"""Values whose dropout one random number of 64 bits decides."""


class Attention(Protocol):
    """How the queries of a flat batch see keys and values: packed training rows, or a KV cache.

    One may also have `lengths`, int64[num_tokens]: how many tokens of each token's sequence are known, those of later
    steps of its prefill included. With dynamic RoPE scaling the frequencies depend on it, so that they do not depend
    on how a prefill is cut into steps; without it, only tokens up to each one count.
    """

    positions: Tensor
    """int64[num_tokens]: each token's place in its own sequence, from 0."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query: float[num_tokens, heads, head_dim]; key, value: float[num_tokens, kv_heads, head_dim].

        Returns float[num_tokens, heads, head_dim], causal within each sequence.
        """
        ...


class PackedSequences:
    """Attention over whole sequences laid end to end, for training and scoring: no token sees another sequence.

    lengths: the token count of each sequence, in order; kept as `sequence_lengths`. Attention alone runs on a padded
    `[sequences, longest]` view; since padding comes after the tokens, the causal mask already hides it.
    generator: draws what dropout leaves out of these sequences; PyTorch's own if not given.
    """

    def __init__(self, lengths: Tensor, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        longest = int(lengths.max())
        self.sequence_lengths = lengths
        self._shape = (len(lengths), longest)
        within = torch.arange(longest, device=lengths.device)
        filled = within[None, :] < lengths[:, None]
        self.positions = within.expand(self._shape)[filled]
        self.lengths = lengths.repeat_interleave(lengths)
        self._slots = filled.flatten().nonzero().squeeze(1)
        self._full = bool(filled.all())
        self._layouts: dict[tuple[int, int], PaddedLayout] = {}

    def _layout(self, heads: int, key_heads: int) -> PaddedLayout:
        """Made once for all layers."""
        if (heads, key_heads) not in self._layouts:
            self._layouts[heads, key_heads] = PaddedLayout(*self._shape, self._slots, heads, key_heads)
        return self._layouts[heads, key_heads]

    def _padded(self, flat: Tensor) -> Tensor:
        rows, longest = self._shape
        if self._full:
            return flat.view(rows, longest, *flat.shape[1:]).transpose(1, 2)
        padded = flat.new_zeros(rows * longest, *flat.shape[1:])
        padded = padded.index_copy(0, self._slots, flat)
        return padded.view(rows, longest, *flat.shape[1:]).transpose(1, 2)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend within each sequence; shapes as `Attention` says."""
        del layer
        if self._shape[1] <= _SHORT and can_use(query) and can_use(key) and can_use(value):
            return short_attention(query, key, value, self._layout(query.shape[1], key.shape[1]))
        grouped = query.shape[1] != key.shape[1]
        output = F.scaled_dot_product_attention(
            self._padded(query), self._padded(key), self._padded(value), is_causal=True, enable_gqa=grouped
        )
        output = output.transpose(1, 2).flatten(0, 1)
        return output if self._full else output.index_select(0, self._slots)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32. Source: Zhang and Sennrich 2019."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float[..., size]. Returns the same shape and dtype."""
        if can_use(hidden) and self.weight.requires_grad:
            return root_mean_square_norm(hidden, self.weight, self.epsilon)
        if hidden.dtype == torch.float32:
            return F.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)
        scaled = F.rms_norm(hidden.float(), self.weight.shape, None, self.epsilon)
        return self.weight * scaled.to(hidden.dtype)


def drop(hidden: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout: a share of the values is 0, the others are larger by as much. generator: PyTorch's own if None.

    On a CPU drawing a number for each value takes longer than all else that is done with them, so each number that is
    drawn there serves four values, with sixteen bits for each.
    """
    if share == 0:
        return hidden
    if hidden.device.type != "cpu" or share == 1:
        return F.dropout(hidden, share)
    count = hidden.numel()
    draws = torch.empty(-(-count // _DRAWS), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    kept = torch.empty_like(hidden)
    torch.ge(draws.view(torch.int16)[:count].view(hidden.shape), round(share * 2**16) - 2**15, out=kept)
    return hidden * kept.mul_(1 / (1 - share))


class SelfAttention(nn.Module):
    """Grouped-query attention with RoPE on a part of each head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.interleaved = layer, config.head_dim, config.interleaved_rotary
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        if config.use_qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.use_qk_norm = config.use_qk_norm

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention, places: Tensor | None = None
    ) -> Tensor:
        """hidden: float[num_tokens, hidden_size]; rotary: as `rotary_tables` returns.

        places: int64[n], the tokens whose result is wanted; None for all. Returns float[n, hidden_size].
        """
        query = self.q_proj(hidden).unflatten(-1, (-1, self.head_dim))
        key = self.k_proj(hidden).unflatten(-1, (-1, self.head_dim))
        value = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim))
        if self.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query, *rotary, interleaved=self.interleaved)
        key = rotate(key, *rotary, interleaved=self.interleaved)
        mixed = attention(self.layer, query, key, value)
        mixed = mixed.flatten(-2)
        return self.o_proj(mixed if places is None else mixed.index_select(0, places))


class FeedForward(nn.Module):
    """SwiGLU with gate and up in one matrix. Source: Shazeer 2020."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float[num_tokens, hidden_size]. Returns the same shape."""
        gate_up = self.gate_up_proj(hidden)
        if can_use(gate_up):
            return self.down_proj(gated_silu(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


def _feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    if config.is_moe_layer(layer):
        return MixtureOfExperts(config)
    if config.is_mixture:
        return GatedFeedForward(config.hidden_size, config.intermediate_size)
    return FeedForward(config)


class DecoderLayer(nn.Module):
    """Attention and feed-forward with pre-norms; Glm4 also normalises what each adds to the residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        size, epsilon = config.hidden_size, config.rms_norm_eps
        self.self_attn = SelfAttention(config, layer)
        self.mlp = _feed_forward(config, layer)
        self.input_layernorm = RMSNorm(size, epsilon)
        self.post_attention_layernorm = RMSNorm(size, epsilon)
        self.post_self_attn_layernorm = RMSNorm(size, epsilon) if config.sandwich_norm else nn.Identity()
        self.post_mlp_layernorm = RMSNorm(size, epsilon) if config.sandwich_norm else nn.Identity()
        self.dropout = config.dropout

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], attention: Attention, places: Tensor | None = None
    ) -> Tensor:
        """As `SelfAttention.forward`, with the feed-forward block and both residual additions."""
        added = self.self_attn(self.input_layernorm(hidden), rotary, attention, places)
        added = self.post_self_attn_layernorm(added)
        if places is not None:
            hidden = hidden.index_select(0, places)
        dropout, generator = self.dropout if self.training else 0.0, getattr(attention, "generator", None)
        hidden = hidden + drop(added, dropout, generator)
        added = self.post_mlp_layernorm(self.mlp(self.post_attention_layernorm(hidden)))
        return hidden + drop(added, dropout, generator)


class Decoder(nn.Module):
    """Embeddings, layers and the last norm; named so that weights carry transformers' names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]


class InputPrefix(Protocol):
    """Learnt vectors before each sequence, which a fine-tuned soft prompt is (see `models/adapters.py`)."""

    def __call__(self, hidden: Tensor, attention: Attention) -> tuple[Tensor, Attention, Tensor]:
        """hidden: float[num_tokens, hidden_size], the embedded tokens.

        Returns them with the vectors between, an attention for all of these, and int64[num_tokens]: where each token
        is now.
        """
        ...


class GlmForCausalLM(nn.Module):
    """`GlmForCausalLM`, `Glm4ForCausalLM` and `Glm4MoeForCausalLM`, chosen by `config.architecture`.

    prefix: vectors that go before each sequence, None for a model of its own. activation_checkpointing: in training,
    compute each layer again for its gradient instead of keeping what it computed. tag_head: in training, what the layer
    before the last is asked of each token besides (`train.loss.tag_loss`); never saved with the model.
    """

    prefix: InputPrefix | None
    tag_head: nn.Linear | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.prefix = None
        self.tag_head = None
        self.activation_checkpointing = False

    def forward(
        self,
        token_ids: Tensor,
        attention: Attention,
        places: Tensor | None = None,
        outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """token_ids: int64[num_tokens]. places: int64[n], the tokens whose result is wanted; None for all.

        What only other tokens need of the last layer is not computed.
        outputs: receives what each layer returns, float[num_tokens, hidden_size], the last one float[n, hidden_size].
        Returns the last hidden state, float[n, hidden_size].
        """
        hidden = self.model.embed_tokens(token_ids)
        if self.prefix is not None:
            hidden, attention, moved = self.prefix(hidden, attention)
            places = moved if places is None else moved[places]
        hidden = drop(hidden, self.config.dropout if self.training else 0.0, getattr(attention, "generator", None))
        rotary = rotary_tables(attention.positions, getattr(attention, "lengths", None), self.config)
        layers = self.model.decoder_layers()
        for layer in layers:
            wanted = places if layer is layers[-1] else None
            if self.activation_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, rotary, attention, wanted, use_reentrant=False)
            else:
                hidden = layer(hidden, rotary, attention, wanted)
            if outputs is not None:
                outputs.append(hidden)
        return self.model.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: float[n, hidden_size], as `forward` returns. Returns float[n, vocab_size]."""
        return self.lm_head(hidden)

    def attach_tag_head(self, count: int, generator: torch.Generator) -> None:
        """Let a model that is to be trained learn `count` tags; one of a single layer has no layer before the last."""
        width = self.config.hidden_size
        if self.config.num_hidden_layers < 2:
            return
        self.tag_head = nn.Linear(width, count)
        with torch.no_grad():
            self.tag_head.weight.normal_(0.0, width**-0.5, generator=generator)
            self.tag_head.bias.zero_()

    def set_dropout(self, dropout: float) -> None:
        """Change the dropout that acts in training, of every layer."""
        self.config = replace(self.config, dropout=dropout)
        for layer in self.model.decoder_layers():
            layer.dropout = dropout

    def initialize(
        self, generator: torch.Generator, scheme: str = "scaled_normal", *, output_gain: float = 1.0
    ) -> None:
        """Fill all weights for training from nothing, as `models/initialization.py` says."""
        initialize(self, self.config.num_hidden_layers, generator, scheme, output_gain=output_gain)
        if scheme == "copying":
            prepare_copying(self.model, self.config, generator)
            with torch.no_grad():
                self.lm_head.weight.copy_(self.model.embed_tokens.weight)
