# SPDX-License-Identifier: Apache-2.0
"""Parts of the decoder with gradients of their own, for training on a CPU.

Each computes what the plain formula in `models/glm.py` does, in fewer passes over memory than autograd makes of it:
there, small models spend as long in these parts as in matrix products. Elsewhere the plain formulas are used.
They compute in float32. Under autocast, where the layers' products are in bfloat16, they leave it for as long: what
they do is bound by memory, and PyTorch's attention in bfloat16 takes more than five times as long backwards there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

_leaving_autocast = custom_fwd(device_type="cpu", cast_inputs=torch.float32)
_as_forwards = custom_bwd(device_type="cpu")


def can_use(hidden: Tensor) -> bool:
    """Whether these functions are for such a tensor: one that needs a gradient, on the CPU, in float32.

    Or in bfloat16 where autocast made it so; a model whose weights are in bfloat16 stays in that.
    """
    if not hidden.requires_grad or hidden.device.type != "cpu":
        return False
    return hidden.dtype == torch.float32 or (hidden.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu"))


class _RootMeanSquareNorm(torch.autograd.Function):
    @staticmethod
    @_leaving_autocast
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        inverse = length.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        scaled = hidden * inverse
        ctx.save_for_backward(scaled, inverse, weight)
        return scaled * weight

    @staticmethod
    @once_differentiable
    @_as_forwards
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scaled, inverse, weight = ctx.saved_tensors
        product = gradient * scaled
        along = (product @ weight).div_(product.shape[-1])[..., None]
        result = (gradient * weight).addcmul_(scaled, along, value=-1).mul_(inverse)
        return result, product.flatten(0, -2).sum(dim=0), None


def root_mean_square_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """hidden: float[..., size]; weight: float32[size]. Returns hidden's shape, in float32."""
    return _RootMeanSquareNorm.apply(hidden, weight, epsilon)


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    @_leaving_autocast
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        ctx.save_for_backward(gate_up)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    @_as_forwards
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(torch.nn.functional.silu(gate), gradient, out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return result


def gated_silu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half. gate_up: float32[..., 2 * size]. Returns float32[..., size]."""
    return _GatedSilu.apply(gate_up)


class _Rotation(torch.autograd.Function):
    @staticmethod
    @_leaving_autocast
    def forward(ctx: Any, heads: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(turns)
        return _turned(heads, turns)

    @staticmethod
    @once_differentiable
    @_as_forwards
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (turns,) = ctx.saved_tensors
        return _turned(gradient, turns.conj()), None


def _turned(heads: Tensor, turns: Tensor) -> Tensor:
    result = heads.clone(memory_format=torch.contiguous_format)
    pairs = result[..., : 2 * turns.shape[-1]].unflatten(-1, (-1, 2))
    torch.view_as_complex(pairs).mul_(turns)
    return result


def rotate_pairs(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """RoPE on neighbours: as `rotate(..., interleaved=True)` says.

    heads: float32[num_tokens, heads, head_dim]; cosines, sines: float32[num_tokens, 1, rotary_dim / 2].
    """
    return _Rotation.apply(heads, torch.complex(cosines, sines))


class PaddedLayout:
    """Where each head of each token of packed sequences lies when every sequence is padded to the longest.

    slots: int64[num_tokens], the token's place in `[sequences, longest]`, flattened.
    """

    def __init__(self, sequences: int, longest: int, slots: Tensor, heads: int, key_heads: int) -> None:
        self.sequences, self.longest, self.heads, self.key_heads = sequences, longest, heads, key_heads
        sequence, place = slots // longest, slots % longest
        self._of_query = _rows(sequence, place, heads, longest)
        self._of_key = self._of_query if heads == key_heads else _rows(sequence, place, key_heads, longest)
        hidden = torch.full((longest, longest), float("-inf")).triu_(1)
        self.mask = hidden.repeat(heads // key_heads, 1)

    def padded(self, flat: Tensor) -> Tensor:
        """float[num_tokens, heads, size] -> float[sequences * key_heads, heads / key_heads * longest, size]."""
        heads = flat.shape[1]
        rows = self._of_query if heads == self.heads else self._of_key
        padded = flat.new_zeros(self.sequences * heads * self.longest, flat.shape[2])
        padded.index_copy_(0, rows, flat.reshape(-1, flat.shape[2]))
        return padded.view(self.sequences * self.key_heads, -1, flat.shape[2])

    def flat(self, padded: Tensor, heads: int) -> Tensor:
        """The inverse of `padded`, for so many heads."""
        rows = self._of_query if heads == self.heads else self._of_key
        return padded.reshape(-1, padded.shape[-1]).index_select(0, rows).view(-1, heads, padded.shape[-1])


def _rows(sequence: Tensor, place: Tensor, heads: int, longest: int) -> Tensor:
    """int64[num_tokens * heads]: rows of a matrix [sequences * heads * longest, ...]."""
    head = torch.arange(heads, device=place.device)
    return ((sequence[:, None] * heads + head) * longest + place[:, None]).flatten()


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    @_leaving_autocast
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PaddedLayout) -> Tensor:
        queries, keys, values = layout.padded(query), layout.padded(key), layout.padded(value)
        scale = 1.0 / math.sqrt(query.shape[-1])
        weights = torch.baddbmm(layout.mask, queries, keys.mT, alpha=scale).softmax(dim=-1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.layout, ctx.scale = layout, scale
        return layout.flat(torch.bmm(weights, values), query.shape[1])

    @staticmethod
    @once_differentiable
    @_as_forwards
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        queries, keys, values, weights = ctx.saved_tensors
        layout: PaddedLayout = ctx.layout
        padded = layout.padded(gradient)
        of_values = torch.bmm(weights.mT, padded)
        of_weights = torch.bmm(padded, values.mT)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, torch.float32).mul_(ctx.scale)
        of_queries, of_keys = torch.bmm(of_scores, keys), torch.bmm(of_scores.mT, queries)
        return (
            layout.flat(of_queries, layout.heads),
            layout.flat(of_keys, layout.key_heads),
            layout.flat(of_values, layout.key_heads),
            None,
        )


def short_attention(query: Tensor, key: Tensor, value: Tensor, layout: PaddedLayout) -> Tensor:
    """Causal attention within sequences so short that all weights of a batch fit the caches.

    query: float32[num_tokens, heads, head_dim]; key, value: float32[num_tokens, key_heads, head_dim].
    Returns query's shape.
    """
    return _ShortAttention.apply(query, key, value, layout)
