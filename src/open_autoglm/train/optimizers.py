# SPDX-License-Identifier: Apache-2.0
"""AdamW and Muon: which parameter is updated by which rule, how fast, and the state that a checkpoint keeps.

The classes of `torch.optim` load PyTorch's compiler when one is made, which costs each process more than a second;
its functions do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.train.gradient_workers import GradientWorkers
from open_autoglm.train.loss import bf16_is_fast
from open_autoglm.train.settings import TrainingSettings, WidthTransfer

_EPSILON: Final = 1e-8
_MUON_MOMENTUM: Final = 0.95
_MUON_RMS: Final = 0.2
"""The root-mean-square of a Muon update, about that of AdamW's, so that both share a learning rate and weight decay."""

_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS: Final = 5
_TINY: Final = 1e-7
_MUON_WORK: Final = 0.15
"""What a matrix's side adds to the work of updating one of its numbers, beside AdamW's update of one."""


@dataclass
class ParameterGroup:
    """Parameters that are updated alike.

    rule: `adamw` or `muon`. rate: multiplies the learning rate. weight_decay: decoupled, multiplied by that rate.
    state: one tensor per parameter and quantity, empty before the first step.
    """

    rule: str
    rate: float
    weight_decay: float
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    state: dict[str, list[Tensor]] = field(default_factory=dict)


def group_parameters(model: GlmForCausalLM, settings: TrainingSettings) -> list[ParameterGroup]:
    """The trainable parameters of a model by how they are updated.

    Vectors and embeddings go by AdamW, vectors without weight decay; the matrices of the layers by
    `settings.optimizer`. With width transfer matrices learn more slowly by their width, as Yang et al. 2022 derive for
    Adam; a Muon update has a spectral norm of `sqrt(width)` at a fixed root-mean-square, so there it is the square
    root. Their weight decay grows by as much, so that what it takes off in one step stays.
    """
    groups: dict[tuple[str, float, float], ParameterGroup] = {}
    transfer = settings.width_transfer
    ratio = 1.0 if transfer is None else model.config.hidden_size / transfer.base_width
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rule, rate, decay = "adamw", 1.0, settings.weight_decay
        if parameter.dim() < 2:
            decay = 0.0
            if name == "model.norm.weight" and transfer is not None:
                rate = output_gain(transfer, model.config.hidden_size)
        elif name.startswith(("model.embed_tokens", "lm_head", "prefix")):
            rate = 1.0 if transfer is None else transfer.embedding_rate
        else:
            rule = settings.optimizer
            rate = 1.0 / (math.sqrt(ratio) if rule == "muon" else ratio)
            decay = settings.weight_decay / rate
        group = groups.setdefault((rule, rate, decay), ParameterGroup(rule, rate, decay))
        group.names.append(name)
        group.parameters.append(parameter)
    return list(groups.values())


def output_gain(transfer: WidthTransfer | None, hidden_size: int) -> float:
    """What the last norm begins at: with width transfer logits are divided by the width, and the norm does that.

    So a model that was trained in this way is an ordinary GLM, with no multiplier that other programs do not know.
    """
    return 1.0 if transfer is None else transfer.output_scale * transfer.base_width / hidden_size


class Optimizer:
    """Updates the trainable parameters of a model from their gradients, in place."""

    def __init__(self, model: GlmForCausalLM, settings: TrainingSettings) -> None:
        self.groups = group_parameters(model, settings)
        self._betas = (settings.beta1, settings.beta2)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that are updated."""
        return [parameter for group in self.groups for parameter in group.parameters]

    def step(self, learning_rate: float, workers: GradientWorkers | None = None) -> None:
        """Update once. A parameter without a gradient stays as it is, its state too.

        workers: threads of which each updates some of the parameters, always the same ones.
        """
        tasks = [
            partial(self._update, share, learning_rate)
            for share in self._shares(1 if workers is None else workers.count)
        ]
        if workers is None:
            tasks[0]()
        else:
            workers.run(tasks)

    @torch.no_grad()
    def _update(self, share: list[tuple[ParameterGroup, list[int]]], learning_rate: float) -> None:
        for group, places in share:
            update = _adamw_step if group.rule == "adamw" else _muon_step
            update(group, places, learning_rate * group.rate, self._betas)

    def _shares(self, count: int) -> list[list[tuple[ParameterGroup, list[int]]]]:
        """Places of each group's parameters that have a gradient, in `count` shares of about the same work."""
        costly: list[tuple[float, int, int]] = []
        for number, group in enumerate(self.groups):
            if not group.state:
                _start_state(group)
            for place, parameter in enumerate(group.parameters):
                if parameter.grad is not None:
                    costly.append((_work_of(group, parameter), number, place))
        loads = [0.0] * count
        found: list[list[list[int]]] = [[[] for _ in self.groups] for _ in range(count)]
        for work, number, place in sorted(costly, key=lambda item: (-item[0], item[1], item[2])):
            least = loads.index(min(loads))
            loads[least] += work
            found[least][number].append(place)
        return [
            [(group, sorted(places)) for group, places in zip(self.groups, share, strict=True) if places]
            for share in found
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    def state(self) -> Iterator[tuple[str, str, Tensor]]:
        """What a checkpoint has to keep: parameter name, quantity, tensor."""
        for group in self.groups:
            for quantity, tensors in group.state.items():
                for name, tensor in zip(group.names, tensors, strict=True):
                    yield name, quantity, tensor

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take back what `state` gave, by parameter name and quantity; an empty one forgets everything.

        Raises KeyError when a parameter or quantity is missing, ValueError for a tensor of another shape.
        """
        for group in self.groups:
            group.state = {}
            if not state:
                continue
            _start_state(group)
            for quantity, tensors in group.state.items():
                for name, tensor in zip(group.names, tensors, strict=True):
                    stored = state[name][quantity]
                    if stored.shape != tensor.shape:
                        raise ValueError(f"{quantity} of {name} has shape {list(stored.shape)}")
                    tensor.copy_(stored)


def _start_state(group: ParameterGroup) -> None:
    if group.rule == "muon":
        group.state = {"momentum": [torch.zeros_like(parameter) for parameter in group.parameters]}
        return
    group.state = {
        "step": [torch.zeros((), dtype=torch.float32, device=parameter.device) for parameter in group.parameters],
        "exp_avg": [torch.zeros_like(parameter) for parameter in group.parameters],
        "exp_avg_sq": [torch.zeros_like(parameter) for parameter in group.parameters],
    }


def _work_of(group: ParameterGroup, parameter: nn.Parameter) -> float:
    """What an update takes, in updates of one number by AdamW."""
    return parameter.numel() * (1.0 if group.rule == "adamw" else 1 + min(parameter.shape) * _MUON_WORK)


def _adamw_step(group: ParameterGroup, places: list[int], learning_rate: float, betas: tuple[float, float]) -> None:
    """Source: Loshchilov and Hutter 2019."""
    parameters = [group.parameters[place] for place in places]
    adam(
        parameters,  # type: ignore[arg-type]
        [parameter.grad for parameter in parameters if parameter.grad is not None],
        [group.state["exp_avg"][place] for place in places],
        [group.state["exp_avg_sq"][place] for place in places],
        [],
        [group.state["step"][place] for place in places],
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=learning_rate,
        weight_decay=group.weight_decay,
        eps=_EPSILON,
        maximize=False,
        decoupled_weight_decay=True,
    )


def _muon_step(group: ParameterGroup, places: list[int], learning_rate: float, betas: tuple[float, float]) -> None:
    """Nesterov momentum, made orthogonal. Source: Jordan et al. 2024; the scale, Liu et al. 2025 (Moonlight)."""
    del betas
    by_shape: dict[tuple[int, int], list[int]] = {}
    for place in places:
        rows, columns = group.parameters[place].shape
        by_shape.setdefault((rows, columns), []).append(place)
    for (rows, columns), alike in by_shape.items():
        updates = []
        for place in alike:
            gradient, momentum = group.parameters[place].grad, group.state["momentum"][place]
            assert gradient is not None
            momentum.lerp_(gradient, 1 - _MUON_MOMENTUM)
            updates.append(gradient.lerp(momentum, _MUON_MOMENTUM))
        orthogonal = orthogonalize(torch.stack(updates))
        size = learning_rate * _MUON_RMS * math.sqrt(max(rows, columns))
        for place, update in zip(alike, orthogonal, strict=True):
            parameter = group.parameters[place]
            parameter.mul_(1 - learning_rate * group.weight_decay).add_(update, alpha=-size)


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are about one: between 0.7 and 1.2.

    matrices: float[n, rows, columns]. Computed in bfloat16 where that is fast, else in float32. Returns the same shape.
    Source: the quintic Newton-Schulz iteration of Jordan et al. 2024.
    """
    dtype = _product_type(matrices.device)
    tall = matrices.shape[1] > matrices.shape[2]
    work = (matrices.mT if tall else matrices).to(dtype)
    work = work / work.norm(dim=(1, 2), keepdim=True).clamp_min(_TINY)
    first, second, third = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = work @ work.mT
        gram = torch.baddbmm(gram, gram, gram, beta=second, alpha=third)
        work = torch.baddbmm(work, gram, work, beta=first)
    work = work.to(matrices.dtype)
    return work.mT if tall else work


@functools.cache
def _product_type(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if bf16_is_fast(device) else torch.float32
