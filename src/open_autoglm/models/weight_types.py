# SPDX-License-Identifier: Apache-2.0
"""The forms in which a weight comes out of a checkpoint: floating point, int8 by row, int4 by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DenseWeight:
    """A tensor in floating point, a read-only view of the file where its layout allows.

    values: float32, float16, or uint16 holding the bits of bfloat16 (then `is_bfloat16`).
    """

    values: np.ndarray
    is_bfloat16: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return self.values.shape

    def float32(self) -> np.ndarray:
        """The same numbers in float32, exactly; no copy if they are."""
        if self.is_bfloat16:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        return self.values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Int8Weight:
    """A matrix rounded to int8 with one scale per row: weight = values * scale[:, None].

    values: int8[rows, columns]; scale: float32[rows].
    """

    values: np.ndarray
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """rows (outputs), columns (inputs)."""
        return self.values.shape

    def float32(self) -> np.ndarray:
        """The matrix as float32[rows, columns]."""
        return self.values.astype(np.float32) * self.scale[:, None]


@dataclass(frozen=True)
class Int4Weight:
    """A matrix in 4 bits with a scale and a zero per row and group of inputs: weight = (value - zero) * scale.

    values: uint8[rows, columns] in 0..15; scales: float32[rows, groups]; zeros: uint8[rows, groups] in 0..15.
    Group g holds the columns g * group_size to (g + 1) * group_size - 1 of `values`; group_size divides columns.
    column_order: int32[columns], a permutation: column i of `values` multiplies input feature column_order[i]
    (GPTQ's desc_act); None when the columns are in order.
    """

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    group_size: int
    column_order: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """rows (outputs), columns (inputs)."""
        return self.values.shape

    def float32(self) -> np.ndarray:
        """The matrix as float32[rows, columns], its columns in the order of the input features."""
        rows, columns = self.values.shape
        grouped = self.values.reshape(rows, -1, self.group_size).astype(np.float32)
        grouped -= self.zeros[..., None]
        grouped *= self.scales[..., None]
        matrix = grouped.reshape(rows, columns)
        if self.column_order is None:
            return matrix
        ordered = np.empty_like(matrix)
        ordered[:, self.column_order] = matrix
        return ordered


def rows_of(weight: DenseWeight | Int8Weight | Int4Weight, rows: slice) -> DenseWeight | Int8Weight | Int4Weight:
    """Some rows of a matrix, in the same form."""
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.values[rows], weight.is_bfloat16)
    if isinstance(weight, Int8Weight):
        return Int8Weight(weight.values[rows], weight.scale[rows])
    return Int4Weight(
        weight.values[rows], weight.scales[rows], weight.zeros[rows], weight.group_size, weight.column_order
    )
