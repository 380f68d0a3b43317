# SPDX-License-Identifier: Apache-2.0
"""How a model is to be distilled, as asked for; without PyTorch."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from open_autoglm.errors import ConfigurationError

DEFAULT_EPOCHS: Final = 3.0
SHAPE: Final = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})(?:x([1-9]\d{0,6}))?")
"""Layers, width and channels of a new student."""

_RATES: Final = {"new": 2e-3, "loaded": 5e-4, "qat": 2e-4}
"""Peak learning rates by what is trained: a model from nothing, one that knows the task, its rounded weights."""


@dataclass(frozen=True)
class DistilSettings:
    """A distillation.

    student: the folder of a model, or a shape (see `students.student_config`); with `qat` the first teacher itself if
    not given, else half of its size. share, temperature, hidden: as `DistillationSettings` says. cache_top: keep so
    many of the teachers' likeliest tokens on disk instead of asking at every step; 0 for none. epochs: how often the
    data is gone through; steps: how many steps exactly, in its place. learning_rate: at its peak; by what is trained if
    not given. qat: train with weights rounded to 4 bits. group_size: inputs that share a scale there. layout: None for
    the file of our own engines in a bundle (a checkpoint then gets `awq`), or the tools' format.
    Raises ConfigurationError, naming the option.
    """

    student: str | None = None
    share: float = 0.5
    temperature: float = 2.0
    hidden: float = 0.0
    cache_top: int = 0
    epochs: float = DEFAULT_EPOCHS
    steps: int | None = None
    learning_rate: float | None = None
    tokens_per_batch: int = 2048
    max_length: int = 1024
    seed: int = 0
    qat: bool = False
    group_size: int = 64
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigurationError(f"--steps must be at least 1, not {self.steps}")
        if not math.isfinite(self.epochs) or self.epochs <= 0:
            raise ConfigurationError(f"--epochs must be more than 0, not {self.epochs}")
        if self.cache_top < 0:
            raise ConfigurationError(f"--cache-top must be at least 0, not {self.cache_top}")
        if self.cache_top and self.hidden:
            raise ConfigurationError("--cache-top keeps probabilities only; leave out either it or --hidden")
        if self.layout is not None and not self.qat:
            raise ConfigurationError("--format is of the rounded weights; give --qat int4 with it")
        if self.max_length < 8:
            raise ConfigurationError(f"--max-length must be at least 8, not {self.max_length}")

    def rate(self, *, is_new: bool) -> float:
        """The peak learning rate for a new student, or for one that knows something."""
        if self.learning_rate is not None:
            return self.learning_rate
        return _RATES["qat" if self.qat else "new" if is_new else "loaded"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)
