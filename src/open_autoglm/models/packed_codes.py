# SPDX-License-Identifier: Apache-2.0
"""What the packings of rounded layers have in common: the description of a layout, 32-bit words, the order of columns.

Without PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from open_autoglm.errors import CheckpointError
from open_autoglm.models.weight_types import DenseWeight, Int4Weight, Int8Weight

Method = Literal["awq", "gptq", "compressed-tensors"]

SETTINGS: Final = "config.json: quantization_config"
"""Where a layout is described, for errors."""


@dataclass(frozen=True)
class PackedLayout:
    """How a checkpoint's rounded layers are packed.

    group_size: inputs that share a scale; -1 is the whole row. zero_offset: GPTQ's missing one. bits: 4 or 8.
    symmetric: the zero is the middle and not stored (compressed-tensors only).
    """

    method: Method
    group_size: int
    zero_offset: int = 0
    bits: int = 4
    symmetric: bool = False

    @property
    def codes(self) -> str:
        """The tensor by which a rounded layer is known."""
        return "weight_packed" if self.method == "compressed-tensors" else "qweight"

    @property
    def scales(self) -> str:
        """The tensor that holds the scales, in floating point."""
        return "weight_scale" if self.method == "compressed-tensors" else "scales"

    @property
    def required(self) -> tuple[str, ...]:
        """The tensors that each rounded layer must have, beside its `bias`."""
        if self.method != "compressed-tensors":
            return ("qweight", "qzeros", "scales")
        return (self.codes, self.scales) if self.symmetric else (self.codes, self.scales, "weight_zero_point")

    @property
    def parts(self) -> tuple[str, ...]:
        """The tensors that a rounded layer may have, beside its `bias`."""
        if self.method != "compressed-tensors":
            return (*self.required, "g_idx")
        return (self.codes, self.scales, "weight_zero_point", "weight_shape", "weight_g_idx")


def check_group_size(group_size: object) -> int:
    """The group size of a `quantization_config`. Raises CheckpointError unless it is positive or -1."""
    if not isinstance(group_size, int) or isinstance(group_size, bool) or (group_size < 1 and group_size != -1):
        raise CheckpointError(f"{SETTINGS}: group_size must be a positive whole number or -1, not {group_size!r}")
    return group_size


def check_parts(
    parts: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]], floats: tuple[str, ...], name: str
) -> None:
    """Raise CheckpointError unless each part is there in its shape, in int32 or, if in `floats`, finite."""
    for part, wanted in expected.items():
        if part not in parts:
            raise CheckpointError(f"{name}.{part} is missing")
        wrong_type = part not in floats and parts[part].dtype != np.int32
        if parts[part].shape != wanted or wrong_type:
            raise CheckpointError(
                f"{name}.{part} is {parts[part].dtype}{list(parts[part].shape)}, expected "
                f"{'a float type' if part in floats else 'int32'}{list(wanted)}"
            )
        if part in floats and not np.isfinite(parts[part]).all():
            raise CheckpointError(f"{name}.{part} holds a number that is not finite")


def as_weight(weight: Int4Weight, bits: int) -> Int4Weight | Int8Weight | DenseWeight:
    """A matrix of codes in the form that the engines compute with; `weight` may hold 8-bit codes here."""
    if bits == 4:
        return weight
    by_row = weight.scales.shape[1] == 1 and weight.column_order is None
    # -128 has no opposite, which some kernels need.
    if by_row and (weight.zeros == 128).all() and weight.values.min(initial=128) > 0:
        return Int8Weight((weight.values - np.uint8(128)).view(np.int8), np.ascontiguousarray(weight.scales[:, 0]))
    return DenseWeight(weight.float32())


def unpack_words(words: np.ndarray, bits: int) -> np.ndarray:
    """32-bit [n, m] -> uint8[n, 32 / bits * m], the lowest bits first. bits: 4 or 8."""
    halves = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    if bits == 8:
        return halves
    spread = np.empty((halves.shape[0], 2 * halves.shape[1]), dtype=np.uint8)
    np.bitwise_and(halves, 15, out=spread[:, 0::2])
    np.right_shift(halves, 4, out=spread[:, 1::2])
    return spread


def column_order(group_of: np.ndarray | None, columns: int, group_size: int, name: str) -> np.ndarray | None:
    """Each input's group -> the columns sorted by group, or None when they are in order already.

    name: of the tensor, for the CheckpointError that says that it does not make groups of one size.
    """
    in_order = np.arange(columns) // group_size
    # Some tools leave it out, empty or all zero or -1 when there is nothing to say.
    if group_of is None or not group_of.size or not group_of.any() or np.array_equal(group_of, in_order):
        return None
    if (group_of == -1).all():
        return None
    if group_of.shape != (columns,) or group_of.dtype.kind not in "iu":
        raise CheckpointError(f"{name} is {group_of.dtype}{list(group_of.shape)}, expected int32[{columns}]")
    order = np.argsort(group_of, kind="stable").astype(np.int32)
    if not np.array_equal(group_of[order], in_order):
        raise CheckpointError(f"{name} does not split the inputs into groups of {group_size}")
    return order
