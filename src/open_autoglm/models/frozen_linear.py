# SPDX-License-Identifier: Apache-2.0
"""Rounded linear layers below an adapter: the gradient passes through them, and their weights never change."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_autoglm.errors import CheckpointError
from open_autoglm.models.quantized_linear import Int8Linear, PackedInt4Linear, round_to_int8
from open_autoglm.models.weight_types import Int4Weight

_GROUP_SIZES: Final = (64, 32, 16, 8)

RoundedLinear = Int8Linear | PackedInt4Linear


def round_linear(linear: nn.Linear, bits: int) -> nn.Linear | RoundedLinear:
    """A layer with its weights rounded to nearest: to int8 by row, or to 4 bits by groups of at most 64 inputs.

    A layer whose inputs no group size divides takes 8 bits.
    """
    bias = None if linear.bias is None else linear.bias.detach()
    group_size = next((size for size in _GROUP_SIZES if linear.in_features % size == 0), None)
    if bits == 8 or group_size is None:
        return Int8Linear(*round_to_int8(linear.weight.detach()), bias)
    return PackedInt4Linear(_round_to_int4(linear.weight.detach(), group_size), bias)


def _round_to_int4(weight: Tensor, group_size: int) -> Int4Weight:
    """Asymmetric, with a whole zero per group, so that a weight of zero stays zero."""
    rows, columns = weight.shape
    groups = weight.float().cpu().numpy().reshape(rows, -1, group_size)
    low, high = np.minimum(groups.min(axis=2), 0.0), np.maximum(groups.max(axis=2), 0.0)
    scales = np.maximum((high - low) / 15, 1e-12).astype(np.float32)
    zeros = np.clip(np.round(-low / scales), 0, 15)
    values = np.clip(np.round(groups / scales[..., None]) + zeros[..., None], 0, 15)
    return Int4Weight(values.reshape(rows, columns).astype(np.uint8), scales, zeros.astype(np.uint8), group_size)


def dense_weight(module: nn.Module) -> Tensor:
    """The matrix of a linear layer, whatever holds it, float[outputs, inputs].

    Raises CheckpointError for a layer whose packing cannot be undone.
    """
    if isinstance(module, nn.Linear):
        return module.weight.detach()
    if isinstance(module, Int8Linear):
        return module.weight.float() * module.scale[:, None]
    if isinstance(module, PackedInt4Linear):
        matrix = module.unpacked()
        if module.column_order is None:
            return matrix
        ordered = torch.empty_like(matrix)
        ordered[:, module.column_order] = matrix
        return ordered
    raise CheckpointError(f"a {type(module).__name__} cannot be trained below an adapter; load the model in float32")


class _FrozenProduct(torch.autograd.Function):
    """A product with weights that are unpacked for each direction, so that no float copy is kept between the two."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, module: RoundedLinear) -> Tensor:
        ctx.module, ctx.dtype = module, hidden.dtype
        return F.linear(hidden, dense_weight(module).to(hidden.dtype), module.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (gradient @ dense_weight(ctx.module).to(gradient.dtype)).to(ctx.dtype), None


class FrozenLinear(nn.Module):
    """A rounded layer through which the gradient passes to what lies below.

    The product is exact in the type of the activations, unlike the kernels that serve such layers, so that a merged
    model computes what was trained.
    """

    def __init__(self, rounded: RoundedLinear) -> None:
        super().__init__()
        self.rounded = rounded

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float[..., inputs]. Returns float[..., outputs]."""
        return _FrozenProduct.apply(hidden, self.rounded)
