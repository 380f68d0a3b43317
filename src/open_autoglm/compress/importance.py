# SPDX-License-Identifier: Apache-2.0
"""Which inputs of a matrix matter least, by what they add to its outputs, and how the others make up for them.

A unit is a run of columns that goes or stays as a whole: a channel, a head, a group of heads. What a unit adds is
W_u H_uu W_u^T, with H the second moments of the inputs (x x^T): its activations and its weights at once, and exactly
the squared error of the outputs when that unit alone is removed.
Source: He et al. 2017 (channel pruning by least squares), Men et al. 2024 (ShortGPT: block influence).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from open_autoglm.compress.activations import HiddenStates
from open_autoglm.errors import CheckpointError

_DAMPING: Final = 0.01
_MOST_DAMPING: Final = 1.0


def unit_importance(weight: Tensor, hessian: Tensor, size: int) -> Tensor:
    """What each unit of `size` columns adds to the outputs, squared and summed over the calibration's tokens.

    weight: float32[rows, columns]; hessian: float32[columns, columns]. Returns float32[columns / size].
    """
    columns = weight.T.unflatten(0, (-1, size))
    count = len(columns)
    inner = torch.stack([hessian[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)])
    return ((columns @ columns.mT) * inner).sum(dim=(1, 2))


def most_important(importance: Tensor, count: int) -> Tensor:
    """int64[count]: the most important units, in their order."""
    return torch.sort(torch.topk(importance, count).indices).values


def columns_of(units: Tensor, size: int) -> Tensor:
    """int64[len(units) * size]: the columns that units of so many are made of."""
    return (units[:, None] * size + torch.arange(size)).flatten()


def without_columns(weight: Tensor, hessian: Tensor, kept: Tensor, *, repair: bool) -> Tensor:
    """A matrix with some of its columns. With `repair`, what minimises the squared error of its outputs.

    weight: float32[rows, columns]; kept: int64[n]. Returns float32[rows, n].
    Raises CheckpointError when the inputs hold numbers that are not finite.
    """
    if not torch.isfinite(hessian).all():
        raise CheckpointError("the calibration's activations are not finite; the model's weights may be damaged")
    if not repair:
        return weight[:, kept].contiguous()
    inner = hessian[kept][:, kept]
    # Towards the weights as they are, not towards zero: a channel that is never active stays itself.
    lost = (weight @ hessian[:, kept]) - weight[:, kept] @ inner
    # By each channel's own size: channels differ by orders of magnitude, and the small ones should help too.
    diagonal = inner.diagonal()
    diagonal = diagonal.clamp_min(1e-6 * (float(diagonal.mean()) or 1.0))
    damping = _DAMPING
    while damping <= _MOST_DAMPING:
        damped = inner + torch.diag(damping * diagonal)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            return (weight[:, kept] + torch.cholesky_solve(lost.T, lower).T).contiguous()
        damping *= 10
    return weight[:, kept].contiguous()


def block_influence(before: HiddenStates, after: HiddenStates) -> float:
    """How much a layer turns the hidden states: 1 - the mean cosine of what goes in and what comes out."""
    total, tokens = 0.0, 0
    for first, last in before.batches:
        entering, leaving = before.read(first, last)[0], after.read(first, last)[0]
        total += float(torch.cosine_similarity(entering, leaving, dim=1).double().sum())
        tokens += len(entering)
    return 1.0 - total / max(1, tokens)
