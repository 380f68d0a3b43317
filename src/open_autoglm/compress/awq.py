# SPDX-License-Identifier: Apache-2.0
"""AWQ: scale input channels up before rounding, where activations are large, and down in the layer that feeds them.

The output error of a rounded matrix is read off the second moments of its inputs (x x^T), exactly, so no activations
are kept. Source: Lin et al. 2023, "AWQ: activation-aware weight quantization".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from open_autoglm.compress.grids import RoundedMatrix, Rounding, fit_grid, round_to_grid

_STEPS: Final = 20
_MOST_ROWS: Final = 2048
"""Rows of a matrix by which channel scales are compared: a wide one need not be looked at whole."""

_LEAST_SCALE: Final = 1e-4


@dataclass(frozen=True)
class ChannelScales:
    """scales: float32[channels], by which inputs of the matrices are multiplied. power: of the mean activation, 0 for
    none. error: the outputs' error with them, relative to that without."""

    scales: Tensor
    power: float
    error: float


def find_scales(
    matrices: Sequence[Tensor],
    hessian: Tensor,
    magnitudes: Tensor,
    rounding: Rounding,
    *,
    tie: Callable[[Tensor], Tensor] | None = None,
) -> ChannelScales:
    """The channel scales under which matrices with the same input lose least when rounded.

    matrices: float32[rows, channels] each. hessian: float32[channels, channels], the sum of x x^T. magnitudes:
    float32[channels], the mean of |x|. tie: makes scales equal where one channel of the layer before feeds several.
    """
    plain = replace(rounding, search=False)
    sampled = [_sample(matrix) for matrix in matrices]
    spread = torch.cat([_relative_weights(matrix, rounding) for matrix in sampled]).mean(dim=0)
    base = _error(sampled, torch.ones_like(magnitudes), hessian, plain)
    best = ChannelScales(torch.ones_like(magnitudes), 0.0, 1.0)
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
            error = _error(sampled, scales, hessian, plain) / base
            if error < best.error:
                best = ChannelScales(scales, power, error)
    return best


def round_by_awq(weight: Tensor, hessian: Tensor, rounding: Rounding) -> RoundedMatrix:
    """Round a matrix to the grids that, group by group, cost its outputs least: AWQ's search for clipped ranges.

    weight: float32[rows, columns], scaled already; hessian: of the scaled inputs.
    """
    size = rounding.group_of(weight.shape[1])
    count = weight.shape[1] // size
    blocks = torch.stack([hessian[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)])
    return round_to_grid(weight, fit_grid(weight, rounding, blocks), rounding)


def _centred(scales: Tensor) -> Tensor:
    """About 1: the geometric mean of the least and the largest is."""
    scales = scales.clamp_min(_LEAST_SCALE)
    return scales / (scales.max() * scales.min()).sqrt()


def _sample(matrix: Tensor) -> Tensor:
    return matrix if len(matrix) <= _MOST_ROWS else matrix[:: -(-len(matrix) // _MOST_ROWS)]


def _relative_weights(matrix: Tensor, rounding: Rounding) -> Tensor:
    """|weight| as a share of the largest of its group, float32[rows, columns]."""
    groups = matrix.abs().unflatten(1, (-1, rounding.group_of(matrix.shape[1])))
    return (groups / groups.amax(dim=2, keepdim=True).clamp_min(1e-12)).flatten(1)


def _error(matrices: Sequence[Tensor], scales: Tensor, hessian: Tensor, rounding: Rounding) -> float:
    """The squared error of the outputs, summed over the calibration's inputs."""
    total = 0.0
    for matrix in matrices:
        scaled = matrix * scales
        rounded = round_to_grid(scaled, fit_grid(scaled, rounding), rounding).values() / scales
        error = rounded - matrix
        total += float(((error @ hessian) * error).sum())
    return total
