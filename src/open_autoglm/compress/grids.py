# SPDX-License-Identifier: Apache-2.0
"""The grid of numbers that a group of weights may take at 4 or 8 bits, and the search for the one that costs least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from open_autoglm.models.weight_types import Int4Weight

ScaleType = Literal["float32", "float16", "bfloat16"]

SHARES: Final = tuple(1 - 0.025 * step for step in range(25))
"""How much of a group's range the grid may span: less of it makes steps finer and cuts off the largest weights."""

_CELLS: Final = 1 << 18
"""Weights looked at together in a search: what they take stays in a processor's cache."""

_LEAST_SCALE: Final = {"float32": 1e-12, "float16": 6e-8, "bfloat16": 1e-12}


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded.

    bits: 4 or 8. group_size: inputs that share a scale, -1 for the whole row. symmetric: the zero is the middle of the
    codes. scale_type: in which scales are stored, so that codes are chosen for the scale that will be read.
    search: look for the range of least error instead of taking the whole range.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    scale_type: ScaleType = "float16"
    search: bool = True

    @property
    def middle(self) -> int:
        """The code that stands for zero on a symmetric grid."""
        return 1 << self.bits - 1

    @property
    def lowest(self) -> int:
        """The least code in use; at 8 bits and symmetric it is 1, for kernels that have no -128."""
        return 1 if self.symmetric and self.bits == 8 else 0

    @property
    def highest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def group_of(self, columns: int) -> int:
        """Inputs that share a scale in a matrix of so many inputs."""
        return columns if self.group_size == -1 else self.group_size


@dataclass(frozen=True)
class Grid:
    """weight = (code - zero) * scale. scales, zeros: float32[rows, groups]; zeros are whole numbers of at least 1."""

    scales: Tensor
    zeros: Tensor

    def codes(self, weight: Tensor, rounding: Rounding) -> Tensor:
        """The nearest codes. weight: float32[rows, groups, size]. Returns float32 of that shape."""
        codes = torch.round(weight / self.scales[..., None]) + self.zeros[..., None]
        return codes.clamp_(rounding.lowest, rounding.highest)

    def values(self, codes: Tensor) -> Tensor:
        """What codes stand for. codes: float32[rows, groups, size]."""
        return (codes - self.zeros[..., None]) * self.scales[..., None]


@dataclass(frozen=True)
class RoundedMatrix:
    """A matrix in codes. codes: uint8[rows, columns]; grid: of its groups."""

    codes: Tensor
    grid: Grid
    group_size: int

    def values(self) -> Tensor:
        """The matrix that the codes mean, float32[rows, columns]."""
        codes = self.codes.unflatten(1, (-1, self.group_size)).float()
        return self.grid.values(codes).flatten(1)

    def weight(self) -> Int4Weight:
        """As the packings take it; the codes may have 8 bits."""
        zeros = self.grid.zeros.to(torch.uint8).numpy()
        return Int4Weight(self.codes.numpy(), np.ascontiguousarray(self.grid.scales.numpy()), zeros, self.group_size)


def fit_grid(weight: Tensor, rounding: Rounding, metric: Tensor | None = None) -> Grid:
    """The grid of each row and group of a matrix.

    weight: float32[rows, columns]. metric: what an error costs: nothing for its square, float32[columns] for its
    square times the input's mean square, float32[groups, size, size] for a quadratic form of each group's errors.
    Source: Lin et al. 2023 for the search over clipped ranges, by output error.
    """
    return _fit_parts(weight, rounding, metric)[0]


def fit_shares(weight: Tensor, rounding: Rounding, metric: Tensor | None = None) -> Tensor:
    """How much of each group's range the grid of `fit_grid` spans, float32[rows, groups]. Arguments as there."""
    return _fit_parts(weight, rounding, metric)[1]


def span_grid(weight: Tensor, shares: Tensor, rounding: Rounding) -> Grid:
    """The grid that spans a given share of each group's range.

    weight: float32[rows, columns]; shares: float32[rows, groups], between 0 and 1.
    """
    groups = weight.unflatten(1, (-1, rounding.group_of(weight.shape[1])))
    low, high = groups.amin(dim=2).clamp_max(0), groups.amax(dim=2).clamp_min(0)
    return _span(low * shares, high * shares, rounding)


def round_to_grid(weight: Tensor, grid: Grid, rounding: Rounding) -> RoundedMatrix:
    """Round each weight to the nearest number of its group's grid. weight: float32[rows, columns]."""
    size = rounding.group_of(weight.shape[1])
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    step = max(1, _CELLS // weight.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        part = Grid(grid.scales[rows], grid.zeros[rows])
        codes[rows] = part.codes(weight[rows].unflatten(1, (-1, size)), rounding).flatten(1).to(torch.uint8)
    return RoundedMatrix(codes, grid, size)


def stored(values: Tensor, scale_type: ScaleType) -> Tensor:
    """float32 as it comes back from a file in that type."""
    return values.to(getattr(torch, scale_type)).float()


def _fit_parts(weight: Tensor, rounding: Rounding, metric: Tensor | None) -> tuple[Grid, Tensor]:
    groups = weight.unflatten(1, (-1, rounding.group_of(weight.shape[1])))
    if metric is not None and metric.dim() == 1:
        metric = metric.unflatten(0, groups.shape[1:])
    parts = groups.split(max(1, _CELLS // weight.shape[1]))
    found = [_fit(part, rounding, metric) for part in parts]
    grids = [grid for grid, _ in found]
    grid = Grid(torch.cat([part.scales for part in grids]), torch.cat([part.zeros for part in grids]))
    return grid, torch.cat([shares for _, shares in found])


def _fit(groups: Tensor, rounding: Rounding, metric: Tensor | None) -> tuple[Grid, Tensor]:
    """groups: float32[rows, groups, size]. Returns the grid, and the share of the range that it spans."""
    low, high = groups.amin(dim=2).clamp_max(0), groups.amax(dim=2).clamp_min(0)
    best, shares = _span(low, high, rounding), torch.ones_like(low)
    if not rounding.search:
        return best, shares
    least = _cost(groups, best, rounding, metric)
    for share in SHARES[1:]:
        grid = _span(low * share, high * share, rounding)
        cost = _cost(groups, grid, rounding, metric)
        better = cost < least
        least = torch.where(better, cost, least)
        scales, zeros = torch.where(better, grid.scales, best.scales), torch.where(better, grid.zeros, best.zeros)
        best, shares = Grid(scales, zeros), torch.where(better, torch.full_like(shares, share), shares)
    return best, shares


def _span(low: Tensor, high: Tensor, rounding: Rounding) -> Grid:
    """The grid from `low`, at most 0, to `high`, at least 0."""
    if rounding.symmetric:
        spread = torch.maximum(-low, high) / (rounding.middle - 1)
    else:
        spread = (high - low) / rounding.highest
    scales = stored(spread.clamp_min(_LEAST_SCALE[rounding.scale_type]), rounding.scale_type)
    if rounding.symmetric:
        return Grid(scales, torch.full_like(scales, rounding.middle))
    return Grid(scales, torch.round(-low / scales).clamp_(1, rounding.highest))


def _cost(groups: Tensor, grid: Grid, rounding: Rounding, metric: Tensor | None) -> Tensor:
    """float32[rows, groups]: what rounding to the grid costs."""
    error = grid.values(grid.codes(groups, rounding)) - groups
    if metric is None:
        return error.square().sum(dim=2)
    if metric.dim() == 2:
        return (error.square() * metric).sum(dim=2)
    by_group = error.transpose(0, 1)
    return ((by_group @ metric) * by_group).sum(dim=2).T
