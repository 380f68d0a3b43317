# SPDX-License-Identifier: Apache-2.0
"""AWQ: scale input channels up before rounding, where activations are large, and down in what feeds them.

Source: Lin et al. 2023, "AWQ: activation-aware weight quantization".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from open_autoglm.compress.grids import RoundedMatrix, Rounding, fit_grid, round_to_grid

_STEPS: Final = 10
_MOST_ROWS: Final = 2048
"""Rows of a matrix by which channel scales are compared where rows do not depend on each other."""

_LEAST_SCALE: Final = 1e-4

OutputError = Callable[[Sequence[Tensor]], float]
"""The squared error of outputs when matrices are replaced by others: float32[rows, channels] each."""


@dataclass(frozen=True)
class ChannelScales:
    """scales: float32[channels], by which inputs of the matrices are multiplied. power: of the mean activation, 0 for
    none. error: the outputs' error with them, relative to that without."""

    scales: Tensor
    power: float
    error: float


def find_scales(
    matrices: Sequence[Tensor],
    magnitudes: Tensor,
    rounding: Rounding,
    output_error: OutputError,
    *,
    tie: Callable[[Tensor], Tensor] | None = None,
) -> ChannelScales:
    """The channel scales under which matrices with the same input cost the outputs least when rounded, or none.

    matrices: float32[rows, channels] each. magnitudes: float32[channels], the mean of |x|. output_error: takes the
    matrices as they are after rounding, with the scales divided out. tie: makes scales equal where one channel of the
    layer before feeds several.
    """
    plain = replace(rounding, search=False)

    def error_with(scales: Tensor | None) -> float:
        return output_error([_rounded(matrix, scales, plain) for matrix in matrices])

    rows = sum(len(matrix) for matrix in matrices)
    spread = torch.stack([_relative_weights(matrix, rounding).sum(dim=0) for matrix in matrices]).sum(dim=0) / rows
    best = ChannelScales(torch.ones_like(magnitudes), 0.0, 1.0)
    base = error_with(None)
    if base == 0:
        return best
    for step in range(1, _STEPS + 1):
        power = step / _STEPS
        for by_weights in (False, True):
            scales = magnitudes.clamp_min(1e-8).pow(power)
            if by_weights:
                scales = scales / (spread.pow(1 - power) + 1e-4)
            scales = _centred(scales)
            if tie is not None:
                scales = tie(scales)
            error = error_with(scales) / base
            if error < best.error:
                best = ChannelScales(scales, power, error)
    return best


def sample_rows(matrix: Tensor) -> Tensor:
    """Some rows of a wide matrix, evenly."""
    return matrix if len(matrix) <= _MOST_ROWS else matrix[:: -(-len(matrix) // _MOST_ROWS)]


def error_by_moments(matrices: Sequence[Tensor], hessian: Tensor) -> OutputError:
    """The error summed over all inputs, exactly, from their second moments. hessian: the sum of x x^T."""

    def error(candidates: Sequence[Tensor]) -> float:
        total = 0.0
        for matrix, candidate in zip(matrices, candidates, strict=True):
            difference = candidate - matrix
            total += float(((difference @ hessian) * difference).sum())
        return total

    return error


def round_by_awq(weight: Tensor, hessian: Tensor, rounding: Rounding) -> RoundedMatrix:
    """Round a matrix to the grids that, group by group, cost its outputs least: AWQ's search for clipped ranges.

    weight: float32[rows, columns], scaled already; hessian: of the scaled inputs.
    """
    size = rounding.group_of(weight.shape[1])
    count = weight.shape[1] // size
    blocks = torch.stack([hessian[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)])
    return round_to_grid(weight, fit_grid(weight, rounding, blocks), rounding)


def _rounded(matrix: Tensor, scales: Tensor | None, rounding: Rounding) -> Tensor:
    if scales is None:
        return round_to_grid(matrix, fit_grid(matrix, rounding), rounding).values()
    scaled = matrix * scales
    return round_to_grid(scaled, fit_grid(scaled, rounding), rounding).values() / scales


def _centred(scales: Tensor) -> Tensor:
    """About 1: the geometric mean of the least and the largest is."""
    scales = scales.clamp_min(_LEAST_SCALE)
    return scales / (scales.max() * scales.min()).sqrt()


def _relative_weights(matrix: Tensor, rounding: Rounding) -> Tensor:
    """|weight| as a share of the largest of its group, float32[rows, columns]."""
    groups = matrix.abs().unflatten(1, (-1, rounding.group_of(matrix.shape[1])))
    return (groups / groups.amax(dim=2, keepdim=True).clamp_min(1e-12)).flatten(1)
