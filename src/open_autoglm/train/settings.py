# SPDX-License-Identifier: Apache-2.0
"""What can be chosen about the training of one model, besides its architecture; without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.spelling import did_you_mean
from open_autoglm.train.schedules import SCHEDULES, learning_rate_at

__all__ = ["AdapterSettings", "TrainingSettings", "WidthTransfer", "learning_rate_at"]

CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "optimizer": ("adamw", "muon"),
    "schedule": SCHEDULES,
    "precision": ("auto", "float32", "bfloat16"),
    "initialization": ("copying", "scaled_normal", "normal", "xavier", "he", "zero_residual"),
}
"""The words that some settings may be."""


@dataclass(frozen=True)
class WidthTransfer:
    """Makes the best learning rate of a narrow model the best one of a wide model too (maximal update).

    base_width: the hidden size at which `learning_rate` means what it says; a model of that width is trained as
    without this. embedding_rate: multiplies the learning rate of the embeddings. output_scale: multiplies the
    logits at the beginning.
    Source: Yang et al. 2022 (Tensor Programs V).
    """

    base_width: int
    embedding_rate: float = 1.0
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("base_width", "embedding_rate", "output_scale"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigurationError(f"training settings: width_transfer.{name} must be positive, not {value}")


@dataclass(frozen=True)
class TrainingSettings:
    """Optimisation of one model.

    learning_rate: peak. tokens_per_batch: non-padding tokens of one step. warmup_steps: linear.
    augmentation: the share of examples of each epoch that are changed: other slot values (extraction), words left out
        (classification).
    gradient_clip: the largest global norm of a step's gradient.
    optimizer: `adamw`, or `muon` for the matrices of the layers and AdamW for the rest. schedule: how the learning
    rate falls, see `learning_rate_at`. label_smoothing: the share of each target spread over the vocabulary.
    ema_decay: of a moving average of the weights, which is kept when it is better; 0 for none.
    accumulation_steps: the parts into which a batch is cut to save memory; the gradient stays the same.
    precision: of matrix products; `auto` is bfloat16 where the processor has it in hardware.
    initialization: of a model trained from nothing, see `models/initialization.py`. width_transfer: None for none.
    activation_checkpointing: compute layers twice instead of keeping what they computed. compile: with
    `torch.compile`. prompt_loss_weight: what a token of a prompt counts beside one of an answer.
    field_tag_weight: what the field that a word of an input is copied to counts beside a token of an answer
    (`data/field_tags.py`); only for extractions whose inputs are read twice.
    bpe_dropout: the share of the tokenizer's merges that are undone, others in each epoch (`data/bpe_dropout.py`).
    adapter: train an adapter on a frozen base instead of all weights.
    Raises ConfigurationError, naming the field.
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
    optimizer: str = "adamw"
    schedule: str = "constant_cosine"
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    accumulation_steps: int = 1
    precision: str = "auto"
    initialization: str = "copying"
    width_transfer: WidthTransfer | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    prompt_loss_weight: float = 0.0
    field_tag_weight: float = 0.0
    bpe_dropout: float = 0.0
    adapter: AdapterSettings | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "tokens_per_batch", "gradient_clip", "accumulation_steps"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigurationError(f"training settings: {name} must be positive, not {value}")
        for name in ("dropout", "augmentation", "prompt_loss_weight", "field_tag_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"training settings: {name} must be between 0 and 1")
        for name in ("label_smoothing", "ema_decay", "beta1", "beta2", "bpe_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigurationError(f"training settings: {name} must be at least 0 and less than 1")
        if not math.isfinite(self.weight_decay) or self.weight_decay < 0:
            raise ConfigurationError(f"training settings: weight_decay must be at least 0, not {self.weight_decay}")
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigurationError(
                    f"training settings: {name} cannot be {value!r}{did_you_mean(str(value), known)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {**asdict(self), "adapter": None if self.adapter is None else self.adapter.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """The inverse of `to_dict`; fields that an older run did not know keep their defaults.

        Raises ConfigurationError for an unknown field or a value out of range.
        """
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigurationError(f"training settings: unknown field '{name}'{did_you_mean(name, known)}")
        given = dict(values)
        if given.get("adapter") is not None:
            given["adapter"] = AdapterSettings.from_dict(given["adapter"])
        if given.get("width_transfer") is not None:
            given["width_transfer"] = WidthTransfer(**given["width_transfer"])
        return cls(**given)
