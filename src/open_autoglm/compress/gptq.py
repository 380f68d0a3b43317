# SPDX-License-Identifier: Apache-2.0
"""GPTQ: round a matrix column by column, and let the columns to come make up for each error.

What the layers before have lost is made up for as well: the matrix is first moved to where its outputs, on the inputs
that it gets, are nearest to those that the exact model has. Sources: Frantar et al. 2023, "GPTQ: accurate post-training
quantization for generative pre-trained transformers"; the aim at the exact model's outputs, Li et al. 2025, "GPTAQ",
here as one ridge regression before the columns are gone through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from open_autoglm.compress.grids import Grid, RoundedMatrix, Rounding, fit_grid
from open_autoglm.errors import CheckpointError

_BLOCK: Final = 128
"""Columns whose errors are gathered before the columns after them are changed, all at once."""

_MOST_DAMPING: Final = 10.0

_RIDGE: Final = 0.5
"""What holds a matrix back from moving, for each column that shares a token: a share of the Hessian's diagonal."""


@dataclass(frozen=True)
class GptqSettings:
    """damping: added to the Hessian's diagonal, as a share of its mean. activation_order: columns with the largest
    inputs first; groups stay where they are, so readers need no order of columns."""

    damping: float = 0.01
    activation_order: bool = True


def move_to_exact_outputs(weight: Tensor, hessian: Tensor, drift: Tensor, tokens: int) -> Tensor:
    """The matrix whose outputs on the inputs x are nearest to those of `weight` on the exact model's inputs e.

    weight: float32[rows, columns]. hessian, drift: float32[columns, columns], the sums of x x^T and (e - x) x^T over so
    many tokens. The fewer there are for each column, the less the matrix moves.
    Raises CheckpointError when the inputs hold numbers that are not finite.
    """
    scales = _checked(hessian).diagonal().sqrt()
    scales[scales == 0] = 1.0
    ridge = min(_MOST_DAMPING, _RIDGE * len(hessian) / max(1, tokens))
    lower, _ = _damped_factor(hessian / torch.outer(scales, scales), ridge)
    goal = (weight @ _checked(drift)) / scales
    return weight + torch.cholesky_solve(goal.T, lower).T / scales


def round_by_gptq(
    weight: Tensor, hessian: Tensor, rounding: Rounding, settings: GptqSettings
) -> tuple[RoundedMatrix, float]:
    """Round a matrix so that its outputs change little.

    weight: float32[rows, columns]. hessian: float32[columns, columns], the sum of x x^T over the calibration's inputs.
    Returns the matrix in codes, and the damping that it took.
    Raises CheckpointError when the inputs hold numbers that are not finite.
    """
    rows, columns = weight.shape
    size = rounding.group_of(columns)
    diagonal = _checked(hessian).diagonal()
    unused = diagonal == 0
    work = weight.T.contiguous()
    work[unused] = 0.0
    order = torch.argsort(diagonal, descending=True, stable=True) if settings.activation_order else None
    # With columns out of order, a group's grid cannot wait until its first column is reached.
    fixed = fit_grid(work.T.contiguous(), rounding, diagonal) if order is not None or size != _aligned(size) else None
    ordered = hessian if order is None else hessian[order][:, order]
    if order is not None:
        work = work[order]
    factor, damping = _inverse_factor(ordered, settings.damping)
    del ordered
    codes = torch.empty((columns, rows), dtype=torch.uint8)
    num_groups = columns // size
    scales = torch.empty((rows, num_groups)) if fixed is None else fixed.scales
    zeros = torch.empty((rows, num_groups)) if fixed is None else fixed.zeros
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        block = work[start:end]
        errors = torch.empty_like(block)
        local = factor[start:end, start:end]
        for place in range(end - start):
            column = start + place
            source = column if order is None else int(order[column])
            group = source // size
            if fixed is None and column % size == 0:
                found = fit_grid(
                    work[column : column + size].T.contiguous(), rounding, diagonal[column : column + size]
                )
                scales[:, group], zeros[:, group] = found.scales[:, 0], found.zeros[:, 0]
            scale, zero = scales[:, group], zeros[:, group]
            code = (torch.round(block[place] / scale) + zero).clamp_(rounding.lowest, rounding.highest)
            codes[source] = code.to(torch.uint8)
            error = (block[place] - (code - zero) * scale) / local[place, place]
            errors[place] = error
            if place + 1 < end - start:
                block[place + 1 :] -= local[place, place + 1 :, None] * error
        if end < columns:
            work[end:] -= factor[start:end, end:].T @ errors
    return RoundedMatrix(codes.T.contiguous(), Grid(scales, zeros), size), damping


def _aligned(size: int) -> int:
    """The group size, if each group lies within one block or is made of whole blocks; else 0."""
    return size if size % _BLOCK == 0 or _BLOCK % size == 0 else 0


def _checked(sums: Tensor) -> Tensor:
    if not torch.isfinite(sums).all():
        raise CheckpointError("the calibration's activations are not finite; the model's weights may be damaged")
    return sums


def _inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the inverse of the damped Hessian, and the damping at which there is one."""
    while True:
        lower, damping = _damped_factor(hessian, damping)
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(torch.isfinite(upper).all()):
            return upper, damping
        damping *= 10


def _damped_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """The lower Cholesky factor of the damped Hessian, and the damping at which there is one."""
    size = len(hessian)
    mean = float(hessian.diagonal().mean())
    while damping <= _MOST_DAMPING:
        damped = hessian.clone()
        diagonal = damped.diagonal()
        diagonal[diagonal == 0] = mean or 1.0
        diagonal += damping * (mean or 1.0)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return lower, damping
        damping *= 10
    raise CheckpointError(f"the inputs of a matrix of {size} columns cannot be told apart; give more --calibration")
