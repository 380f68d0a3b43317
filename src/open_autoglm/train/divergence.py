# SPDX-License-Identifier: Apache-2.0
"""Seeing that a run diverges: a loss that is no number, or far above what it was for several steps in a row."""

from __future__ import annotations

import math
import statistics
from typing import Final

import numpy as np
import torch

from open_autoglm.data import TokenizedExamples
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.train.checkpoint import Progress
from open_autoglm.train.loss import answer_loss

MOST_RESTARTS: Final = 6
"""How often a run may go back to its last checkpoint with half its learning rate."""

_WINDOW: Final = 32
_PATIENCE: Final = 4
_FACTOR: Final = 2.0
_MARGIN: Final = 2.0


class DivergenceWatch:
    """Watches the losses of one run; what it remembers lies in `progress`, so that a resumed run sees the same.

    A loss is far above if it exceeds twice the steady loss by two nats per token: the steady loss is the lowest median
    of 32 losses so far, and before there are so many, the first loss. Four such steps in a row are a
    divergence; one alone is a hard batch.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def see(self, loss: float, gradient_norm: float) -> str | None:
        """Take in a step. Returns what is wrong, or None while all is well.

        loss: in nats per token. gradient_norm: before clipping.
        """
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        if not math.isfinite(gradient_norm):
            return f"the gradient became {gradient_norm}"
        progress = self._progress
        progress.recent_losses = [*progress.recent_losses[-(_WINDOW - 1) :], loss]
        median = statistics.median(progress.recent_losses)
        if progress.steady_loss is None:
            progress.steady_loss = loss
        if len(progress.recent_losses) == _WINDOW:
            progress.steady_loss = min(progress.steady_loss, median)
        return self.rise if self.high_losses >= _PATIENCE else None

    @property
    def high_losses(self) -> int:
        """How many of the last losses are far above, one after the other."""
        steady = self._progress.steady_loss
        count = 0
        for loss in reversed(self._progress.recent_losses):
            if steady is None or loss <= _FACTOR * steady + _MARGIN:
                break
            count += 1
        return count

    @property
    def rise(self) -> str:
        """From where to where the loss rose, in words."""
        progress = self._progress
        last = progress.recent_losses[-1] if progress.recent_losses else math.nan
        return f"the loss rose to {last:.3g} from about {progress.steady_loss or math.nan:.3g}"


def explain_bad_batch(model: GlmForCausalLM, examples: TokenizedExamples, chosen: np.ndarray) -> str | None:
    """Why the loss or the gradient of a batch is no number although the weights are from before anything went wrong.

    chosen: int64[k], the examples of the batch. Returns the fault and what to do, or None when there is none.
    """
    was_training = model.training
    model.eval()
    bad = [int(index) for index in chosen if not _is_finite(model, examples, index)]
    model.train(was_training)
    if not bad:
        return None
    broken = [name for name, parameter in model.named_parameters() if not bool(torch.isfinite(parameter).all())]
    if broken and len(bad) == len(chosen):
        return f"the weight {broken[0]} holds numbers that are not finite; start from a sound checkpoint"
    shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
    cause = f", for {broken[0]} has rows that are not finite" if broken else ""
    return (
        f"the examples number {shown} (from 0) give it by themselves{cause}; take them out of the data, or use "
        "another base checkpoint"
    )


def _is_finite(model: GlmForCausalLM, examples: TokenizedExamples, index: int) -> bool:
    total, _, _ = answer_loss(model, examples, np.array([index]))
    total.backward()
    found = bool(torch.isfinite(total.detach()))
    for parameter in model.parameters():
        if parameter.grad is not None:
            found = found and bool(torch.isfinite(parameter.grad).all())
            parameter.grad = None
    return found
