# SPDX-License-Identifier: Apache-2.0
"""Threads that compute the gradients of a batch side by side, each those of a part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from open_autoglm.models.adapters import LoraLinear
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.train.settings import TrainingSettings

_LARGE: Final = 64_000_000


def workers_for(model: GlmForCausalLM, settings: TrainingSettings, threads: int | None) -> int:
    """How many parts of a batch to compute at a time with so many threads of the processor: all of them, or one.

    The products of a small model are too small to be shared by threads, which wait for each other longer than they
    compute; parts of a batch need each other only once a step. A large model shares its products instead, since each
    worker holds gradients of its own. So does one on a GPU, one that is compiled, and one whose dropout PyTorch's one
    generator draws, in the order in which threads come to it: such a run could not be repeated.
    """
    if threads is None or threads <= 1 or settings.compile or next(model.parameters()).device.type != "cpu":
        return 1
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    hides_draws = model.prefix is not None or settings.activation_checkpointing
    shares_draws = (model.config.dropout > 0 and hides_draws) or any(
        isinstance(module, LoraLinear) and module.dropout > 0 for module in model.modules()
    )
    return 1 if trained > _LARGE or shares_draws else threads


class GradientWorkers:
    """Computes the gradients of losses in `count` threads, and adds them up in the order of the losses.

    So the sums are the same bits in each run, whichever thread is faster. parameters: float tensors that require a
    gradient.
    """

    def __init__(self, parameters: Sequence[Tensor], count: int) -> None:
        self._parameters = list(parameters)
        self.count = count

    @contextmanager
    def started(self) -> Iterator[None]:
        """The threads exist, and PyTorch gives each operation one thread, meanwhile."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(self.count, "gradients", torch.set_num_threads, (1,)) as self._pool:
                yield
        finally:
            torch.set_num_threads(before)

    def run(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Do tasks side by side, and wait for all. What one raises is raised here."""
        for _ in self._pool.map(_do, tasks):
            pass

    def backward(self, losses: Sequence[Callable[[], Tensor]]) -> float:
        """Set `grad` of the parameters to the gradient of the sum of the losses; returns that sum.

        losses: each is called in a thread and returns a scalar. What one raises is raised here.
        """
        found = list(self._pool.map(self._differentiate, losses))
        for place, parameter in enumerate(self._parameters):
            parts = [part for _, gradients in found if (part := gradients[place]) is not None]
            for part in parts[1:]:
                parts[0].add_(part)
            parameter.grad = parts[0] if parts else None
        return sum(value for value, _ in found)

    def _differentiate(self, loss: Callable[[], Tensor]) -> tuple[float, tuple[Tensor | None, ...]]:
        value = loss()
        return float(value.detach()), torch.autograd.grad(value, self._parameters, allow_unused=True)


def _do(task: Callable[[], None]) -> None:
    task()
