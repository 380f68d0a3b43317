# SPDX-License-Identifier: Apache-2.0
"""Linear layers and embeddings whose weights stay in 8 or 4 bits, rounded to nearest or as another tool packed them.

The activations stay in floating point. Large matrices go through PyTorch's CPU kernels, which unpack the weights inside
a product of bfloat16 activations; their float32 versions are reference code that is tens of times slower. Small int8
matrices are unpacked before an exact float32 product, which costs little there. The choice depends on the matrix and
never on the batch, so that an answer does not depend on what else is in it.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_autoglm.models.precision import KeepsFloat32
from open_autoglm.models.weight_types import Int4Weight

_SMALL: Final = 2_000_000
"""Weights of a matrix up to which unpacking it whole costs less than losing the exact product."""

INT4_GROUP_SIZES: Final = (128, 64, 32)
"""Inputs that share one scale at 4 bits: the first that divides the input size is taken."""


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric 8-bit rounding with one scale per row.

    weight: float[rows, columns]. Returns int8[rows, columns] and float32[rows], whose product is the weight.
    """
    scale = weight.abs().amax(dim=1).float().clamp_min(1e-12) / 127
    rounded = torch.round(weight.float() / scale[:, None]).clamp(-127, 127).to(torch.int8)
    return rounded, scale


def round_to_int4(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Asymmetric 4-bit rounding with one scale and offset per group of inputs.

    weight: float[rows, columns]. Returns int32[rows, columns] in 0..15, and float32[columns / group_size, rows, 2]
    holding scale and offset so that weight = (value - 8) * scale + offset.
    """
    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // group_size, group_size)
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    scale = ((high - low) / 15).clamp_min(1e-12)
    values = torch.round((groups - low[..., None]) / scale[..., None]).clamp(0, 15).to(torch.int32)
    offset = low + 8 * scale
    return values.view(rows, columns), torch.stack((scale, offset), dim=-1).transpose(0, 1).contiguous()


class Int8Linear(nn.Module):
    """A linear layer that holds int8 weights and one float32 scale per output."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float[..., inputs]. Returns float[..., outputs]."""
        if self.weight.numel() <= _SMALL or hidden.device.type != "cpu":
            product = F.linear(hidden, self.weight.to(hidden.dtype)) * self.scale.to(hidden.dtype)
        else:
            flat = hidden.flatten(0, -2).to(torch.bfloat16)
            product = torch.ops.aten._weight_int8pack_mm(flat, self.weight, self.scale.to(torch.bfloat16))
            product = product.to(hidden.dtype).unflatten(0, hidden.shape[:-1])
        return product if self.bias is None else product + self.bias


class Int8Embedding(nn.Module):
    """An embedding table in int8, sharing its memory with the output matrix when the model ties them."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids: int64[n]. Returns float32[n, hidden_size]."""
        return F.embedding(token_ids, self.weight).float() * self.scale[token_ids][..., None]


class Int4Linear(nn.Module):
    """A linear layer that holds 4-bit weights with a scale and an offset per group of inputs; for the CPU only."""

    packed: Tensor
    scale_and_offset: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, group_size: int) -> None:
        super().__init__()
        values, scale_and_offset = round_to_int4(linear.weight.detach(), group_size)
        self.group_size = group_size
        self.register_buffer("packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 2))
        self.register_buffer("scale_and_offset", scale_and_offset.to(torch.bfloat16))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float[..., inputs]. Returns float[..., outputs]."""
        flat = hidden.flatten(0, -2).to(torch.bfloat16)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.packed, self.group_size, self.scale_and_offset)
        product = product.to(hidden.dtype).unflatten(0, hidden.shape[:-1])
        return product if self.bias is None else product + self.bias


class PackedInt4Linear(KeepsFloat32):
    """A linear layer of an AWQ or GPTQ checkpoint, its codes, scales and zeros as they are in the file.

    The matrix is unpacked at each use: exact and on any device, where a kernel would round scales to bfloat16.
    """

    float32_buffers: ClassVar[tuple[str, ...]] = ("scales",)
    packed: Tensor
    scales: Tensor
    zeros: Tensor
    column_order: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Int4Weight, bias: Tensor | None = None) -> None:
        super().__init__()
        packed = weight.values[:, 0::2] | (weight.values[:, 1::2] << 4)
        order = None if weight.column_order is None else torch.from_numpy(weight.column_order).long()
        self.register_buffer("packed", torch.from_numpy(packed))
        self.register_buffer("scales", torch.from_numpy(weight.scales.copy()))
        self.register_buffer("zeros", torch.from_numpy(weight.zeros.copy()))
        self.register_buffer("column_order", order)
        self.register_buffer("bias", bias)

    def unpacked(self) -> Tensor:
        """The matrix, float32[outputs, inputs], its columns as packed."""
        codes = torch.stack((self.packed & 15, self.packed >> 4), dim=-1).flatten(-2)
        grouped = codes.unflatten(-1, (self.scales.shape[1], -1)) - self.zeros[..., None].to(torch.int16)
        return (grouped * self.scales[..., None]).flatten(-2)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float[..., inputs]. Returns float[..., outputs]."""
        if self.column_order is not None:
            hidden = hidden.index_select(-1, self.column_order)
        return F.linear(hidden, self.unpacked().to(hidden.dtype), self.bias)


def unpack_in_place(model: nn.Module) -> None:
    """Put plain float32 layers of the same numbers in place of packed ones: faster, where memory does not matter."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedInt4Linear):
            matrix = module.unpacked()
            if module.column_order is not None:
                matrix = matrix[:, torch.argsort(module.column_order)]
            linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=module.bias is not None, device="meta")
            linear.weight = nn.Parameter(matrix, requires_grad=False)
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias, requires_grad=False)
            model.set_submodule(name, linear)


def int4_group_size(linear: nn.Linear) -> int | None:
    """The group size that fits a layer, or nothing when PyTorch's kernel cannot take its shape."""
    if linear.out_features % 32:
        return None
    return next((size for size in INT4_GROUP_SIZES if linear.in_features % size == 0), None)
