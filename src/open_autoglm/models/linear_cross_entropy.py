# SPDX-License-Identifier: Apache-2.0
"""The output matrix and the cross-entropy of its logits in one function, for training on a CPU.

A batch has more logits than anything else in a small model, and PyTorch passes over all of them in memory five times or
more, each time into memory of its own. Here a few rows at a time are computed, turned into their loss and into the
gradient, and multiplied into what is passed back while they are still in the cache: no row of logits is ever kept.
Source: the same idea for GPUs, Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989), section 3.2.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

_CACHED: Final = 1 << 19
"""Logits that are in work at a time: with their copies in bfloat16, 3 MB."""

_LEAST_ROWS: Final = 16


def can_fuse(head: nn.Module, hidden: Tensor) -> bool:
    """Whether `linear_cross_entropy` is for this output matrix: a plain one in float32, on the CPU."""
    return (
        type(head) is nn.Linear
        and head.bias is None
        and head.weight.dtype == torch.float32
        and hidden.device.type == "cpu"
        and head.weight.device.type == "cpu"
    )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """The sum over rows of the cross-entropy of `hidden @ weight.T`, in nats, a scalar in float32.

    hidden: float[n, size]. weight: float32[vocabulary, size]. targets: int64[n]. counts: float32[n], what each row
    counts; None when each counts one. label_smoothing: the share of each target spread over the vocabulary. Products
    are in bfloat16 under autocast, all else in float32.
    """
    product = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
    return _LinearCrossEntropy.apply(hidden, weight, targets, counts, label_smoothing, product)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(  # noqa: PLR0917
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        counts: Tensor | None,
        smoothing: float,
        product: torch.dtype,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        rows, vocabulary = len(hidden), len(weight)
        step = max(_LEAST_ROWS, _CACHED // vocabulary)
        matrix, inputs = weight.to(product), hidden.to(product)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(weight) if wants_weight else None
        losses = torch.empty(rows)
        exact, softened = (torch.empty(min(step, rows), vocabulary) for _ in range(2))
        rounded = exact if product == torch.float32 else torch.empty_like(exact, dtype=product)
        for start in range(0, rows, step):
            part, wanted = inputs[start : start + step], targets[start : start + step, None]
            logits, coarse = exact[: len(part)], rounded[: len(part)]
            torch.mm(part, matrix.T, out=coarse)
            if product != torch.float32:
                logits.copy_(coarse)
            highest, loss = logits.amax(dim=1, keepdim=True), -(1 - smoothing) * logits.gather(1, wanted)
            if smoothing:
                loss.sub_(logits.mean(dim=1, keepdim=True), alpha=smoothing)
            shares = torch.softmax(logits, dim=1, out=softened[: len(part)])
            # The likeliest token has the share 1 / sum(exp(logits - highest)).
            losses[start : start + step] = loss.add_(highest).sub_(shares.amax(dim=1, keepdim=True).log_())[:, 0]
            if of_hidden is None and of_weight is None:
                continue
            counted = torch.ones_like(highest) if counts is None else counts[start : start + step, None]
            shares.mul_(counted)
            if smoothing:
                shares.sub_(counted * (smoothing / vocabulary))
            shares.scatter_add_(1, wanted, counted * (smoothing - 1))
            change = shares if product == torch.float32 else coarse.copy_(shares)
            if of_hidden is not None:
                of_hidden[start : start + step] = torch.mm(change, matrix)
            if of_weight is not None:
                of_weight += torch.mm(change.T, part)
        ctx.save_for_backward(of_hidden, of_weight)
        return losses.sum() if counts is None else losses.dot(counts)

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden * gradient,
            None if of_weight is None else of_weight * gradient,
            None,
            None,
            None,
            None,
        )
