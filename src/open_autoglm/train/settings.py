# SPDX-License-Identifier: Apache-2.0
"""What can be chosen about the training of one model, besides its architecture."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from open_autoglm.errors import ConfigurationError


@dataclass(frozen=True)
class TrainingSettings:
    """Optimisation of one model.

    learning_rate: peak, of AdamW. tokens_per_batch: non-padding tokens of one step. warmup_steps: linear.
    augmentation: the share of examples of each epoch whose slot values are swapped (extraction only).
    gradient_clip: the largest global norm of a step's gradient.
    """

    learning_rate: float = 3e-3
    tokens_per_batch: int = 2048
    warmup_steps: int = 60
    weight_decay: float = 0.1
    dropout: float = 0.1
    augmentation: float = 0.0
    gradient_clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        positive = ("learning_rate", "tokens_per_batch", "gradient_clip")
        for name in positive:
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigurationError(f"training settings: {name} must be positive, not {value}")
        for name in ("dropout", "augmentation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"training settings: {name} must be between 0 and 1")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `TrainingSettings(**values)` reads it back."""
        return asdict(self)


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, decay_from: int | None, total_steps: int) -> float:
    """The learning rate of a step: linear warm-up, then constant until `decay_from`, then half a cosine to 2%.

    decay_from: None for a run whose end is not known yet, such as a search trial.
    Source of the cosine: Loshchilov and Hutter 2017; of the constant phase: Hu et al. 2024 (MiniCPM).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay_from is None or step < decay_from:
        return peak
    share = min(1.0, (step - decay_from) / max(1, total_steps - decay_from))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
