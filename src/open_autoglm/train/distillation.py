# SPDX-License-Identifier: Apache-2.0
"""Learning from another model: the loss that mixes the data's tokens with a teacher's probabilities and hidden states.

Source: Hinton et al. 2015 (temperature, the mixture), Romero et al. 2015 (hidden states through a projection).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_autoglm.errors import ConfigurationError
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.loss import TrainingBatch

_PROJECTION: Final = "projection"
_TINY: Final = 1e-6


@dataclass(frozen=True)
class DistillationSettings:
    """What the loss is made of.

    share: of the teachers' probabilities, between 0 and 1; the rest is cross-entropy of the data's own tokens.
    temperature: divides the logits of both, so that unlikely tokens count. hidden: what the squared error of the hidden
    states counts beside that, relative to their mean square; 0 for none.
    Raises ConfigurationError, naming the option.
    """

    share: float = 0.5
    temperature: float = 2.0
    hidden: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigurationError(f"--share must be between 0 and 1, not {self.share}")
        if not math.isfinite(self.temperature) or not 0.1 <= self.temperature <= 100:
            raise ConfigurationError(f"--temperature must be between 0.1 and 100, not {self.temperature}")
        if not math.isfinite(self.hidden) or self.hidden < 0:
            raise ConfigurationError(f"--hidden must be at least 0, not {self.hidden}")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class SoftTargets:
    """What teachers say of the tokens to learn of a batch.

    log_probabilities: float32[n, k], at the temperature. token_ids: int64[n, k], whose they are; None when they are of
    the whole vocabulary, in order. hidden: float32[rows, width] after some layers of the teacher.
    """

    log_probabilities: Tensor
    token_ids: Tensor | None = None
    hidden: tuple[Tensor, ...] = ()


class Teacher(Protocol):
    """Whoever knows what the answers should be like."""

    def __call__(self, batch: TrainingBatch) -> SoftTargets:
        """The targets of a batch, for each of its `places`."""
        ...


class Distillation:
    """The objective of a student, for the `Trainer`.

    vocabulary: how many tokens the tokenizer has; logits beyond them are of no token, and models differ in how many
    they have. watched: layers of the student whose outputs are compared with the teacher's hidden states, in order.
    """

    def __init__(
        self, teacher: Teacher, settings: DistillationSettings, vocabulary: int, watched: Sequence[int] = ()
    ) -> None:
        self._teacher, self._settings, self._vocabulary = teacher, settings, vocabulary
        self._watched = tuple(watched)

    def __call__(self, model: GlmForCausalLM, batch: TrainingBatch) -> Tensor:
        """The weighted sum over the tokens to learn, a scalar in float32."""
        settings = self._settings
        targets = self._teacher(batch)
        states: list[Tensor] | None = [] if self._watched else None
        hidden = model(batch.token_ids, PackedSequences(batch.lengths, batch.generator), batch.places, states)
        logits = model.logits(hidden).float()
        losses = (1 - settings.share) * F.cross_entropy(logits, batch.token_ids[batch.places + 1], reduction="none")
        if settings.share:
            # Gradients of softened logits shrink by the square of the temperature.
            divergences = soft_divergence(logits[:, : self._vocabulary], targets, settings.temperature)
            losses = losses + settings.share * settings.temperature**2 * divergences
        total = losses.sum() if batch.weights is None else losses.dot(batch.weights)
        if states:
            found = [states[index] for index in self._watched]
            total = total + settings.hidden * batch.weight * hidden_error(projection_of(model), found, targets.hidden)
        return total


def soft_divergence(logits: Tensor, targets: SoftTargets, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student from its teacher at each token, in nats, float32[n].

    logits: float32[n, vocabulary], the student's. Where the teacher names only some tokens, all the others count as
    one: what is left out makes the divergence smaller, never larger.
    """
    student = F.log_softmax(logits / temperature, dim=-1)
    teacher = targets.log_probabilities
    if targets.token_ids is None:
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(dim=-1)
    named = student.gather(1, targets.token_ids)
    probabilities = teacher.exp()
    others = (1 - probabilities.sum(dim=-1)).clamp_min(_TINY)
    student_others = (1 - named.exp().sum(dim=-1)).clamp_min(_TINY)
    return (probabilities * (teacher - named)).sum(dim=-1) + others * (others.log() - student_others.log())


def hidden_error(projection: nn.Linear | None, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The mean over layers of the mean squared error, as a share of the teacher's mean square; a scalar.

    found: float[rows, student's width] each; wanted: float[rows, teacher's width] each.
    """
    errors: list[Tensor] = []
    for mine, theirs in zip(found, wanted, strict=True):
        projected = mine if projection is None else projection(mine)
        errors.append(F.mse_loss(projected.float(), theirs.float()) / theirs.float().square().mean().clamp_min(_TINY))
    return torch.stack(errors).mean()


def matching_layers(student: int, teacher: int) -> tuple[list[int], list[int]]:
    """Which layers of models of so many are compared: as many as the smaller has, evenly, both last ones with them."""
    count = min(student, teacher)
    mine, theirs = ([round((i + 1) * layers / count) - 1 for i in range(count)] for layers in (student, teacher))
    return mine, theirs


def attach_projection(model: GlmForCausalLM, width: int, generator: torch.Generator) -> None:
    """Give a student of another width a matrix to the teacher's, which is trained with it; see `detach_projection`."""
    inputs = model.config.hidden_size
    if width == inputs:
        return
    projection = nn.Linear(inputs, width, bias=False)
    with torch.no_grad():
        projection.weight.normal_(0.0, 1.0 / math.sqrt(inputs), generator=generator)
    model.add_module(_PROJECTION, projection)


def projection_of(model: GlmForCausalLM) -> nn.Linear | None:
    """The matrix that `attach_projection` gave, if it did."""
    found = getattr(model, _PROJECTION, None)
    return found if isinstance(found, nn.Linear) else None


def detach_projection(model: GlmForCausalLM) -> None:
    """Take the matrix away, so that the student is an ordinary GLM."""
    if projection_of(model) is not None:
        delattr(model, _PROJECTION)
