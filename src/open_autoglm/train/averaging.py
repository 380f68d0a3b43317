# SPDX-License-Identifier: Apache-2.0
"""An exponential moving average of a model's trainable weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from open_autoglm.models.glm import GlmForCausalLM


class WeightAverage:
    """The moving average, beside the weights themselves.

    decay: what of the average stays in each step. It grows towards that, as (1 + step) / (10 + step), so that the
    weights from before the first steps are soon forgotten.
    Source: Polyak and Juditsky 1992; the growing decay as TensorFlow's ExponentialMovingAverage has it.
    """

    def __init__(self, model: GlmForCausalLM, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: item for name, item in model.named_parameters() if item.requires_grad}
        self.tensors = {name: item.detach().clone() for name, item in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back a checkpoint's average. Raises KeyError when a tensor is missing."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block, the model has the average for its weights; afterwards its own again, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Give the model the average for its weights, for good."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.tensors[name])
