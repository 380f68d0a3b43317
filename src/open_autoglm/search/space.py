# SPDX-License-Identifier: Apache-2.0
"""What the search may choose: the architecture of a small GLM and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import optuna

from open_autoglm.models.config import ModelConfig
from open_autoglm.task import Task, TaskKind
from open_autoglm.train.settings import TrainingSettings

_HEAD_DIM: Final = 32
_LAYERS: Final = (3, 6)
_HIDDEN_STEPS: Final = (5, 10)
_FEED_FORWARD_STEP: Final = 32

DEFAULT_PARAMETERS: Final[dict[str, Any]] = {
    "architecture": "GlmForCausalLM",
    "layers": 3,
    "hidden_steps": 6,
    "key_value_sharing": 2,
    "feed_forward_ratio": 2.5,
    "partial_rotary_factor": 0.5,
    "learning_rate": 2e-3,
    "tokens_per_batch": 512,
    "weight_decay": 0.1,
    "dropout": 0.0,
}
"""The first trial: what did well on the data sets that we tried, so that a short search is never worse than none."""

_DEFAULT_AUGMENTATION: Final = 0.7
_BASE_LEARNING_RATE: Final = 2e-5


@dataclass(frozen=True)
class Candidate:
    """One choice of everything: which GLM, and how to train it."""

    config: ModelConfig
    settings: TrainingSettings


@dataclass(frozen=True)
class SearchSpace:
    """The space for one data set.

    base: the architecture of a given checkpoint, which then stays as it is, or None to search one as well.
    vocab_size, max_length: of the tokenised data. longest: the longest context that the model will be asked for.
    """

    task: Task
    vocab_size: int
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    seed: int
    base: ModelConfig | None = None

    def defaults(self) -> dict[str, Any]:
        """The parameters of the first trial."""
        if self.base is not None:
            return {
                "learning_rate": _BASE_LEARNING_RATE,
                "tokens_per_batch": DEFAULT_PARAMETERS["tokens_per_batch"],
                "weight_decay": 0.01,
                "dropout": 0.0,
                **self._augmentation_default(),
            }
        return {**DEFAULT_PARAMETERS, **self._augmentation_default()}

    def suggest(self, trial: optuna.trial.BaseTrial) -> Candidate:
        """Ask the trial for each parameter, in a fixed order, and build what they describe."""
        low, high = (2e-6, 2e-4) if self.base is not None else (1e-3, 4e-3)
        config = self.base or self._suggest_architecture(trial)
        settings = TrainingSettings(
            learning_rate=trial.suggest_float("learning_rate", low, high, log=True),
            tokens_per_batch=trial.suggest_categorical("tokens_per_batch", (512, 1024, 2048)),
            weight_decay=trial.suggest_float("weight_decay", 0.01, 0.3, log=True),
            dropout=trial.suggest_float("dropout", 0.0, 0.15, step=0.05),
            augmentation=(
                trial.suggest_float("augmentation", 0.3, 0.9, step=0.1)
                if self.task.kind is TaskKind.EXTRACTION
                else 0.0
            ),
            seed=self.seed,
        )
        return Candidate(replace(config, dropout=settings.dropout), settings)

    def _augmentation_default(self) -> dict[str, Any]:
        return {"augmentation": _DEFAULT_AUGMENTATION} if self.task.kind is TaskKind.EXTRACTION else {}

    def _suggest_architecture(self, trial: optuna.trial.BaseTrial) -> ModelConfig:
        architecture = trial.suggest_categorical("architecture", ("GlmForCausalLM", "Glm4ForCausalLM"))
        layers = trial.suggest_int("layers", *_LAYERS)
        heads = trial.suggest_int("hidden_steps", *_HIDDEN_STEPS)
        sharing = trial.suggest_categorical("key_value_sharing", (1, 2, 3))
        ratio = trial.suggest_float("feed_forward_ratio", 2.0, 4.0, step=0.5)
        hidden = heads * _HEAD_DIM
        intermediate = max(1, round(hidden * ratio / _FEED_FORWARD_STEP)) * _FEED_FORWARD_STEP
        return ModelConfig(
            vocab_size=self.vocab_size,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // sharing if heads % sharing == 0 else heads,
            head_dim=_HEAD_DIM,
            architecture=architecture,
            max_position_embeddings=self.max_position_embeddings,
            partial_rotary_factor=trial.suggest_categorical("partial_rotary_factor", (0.5, 1.0)),
            tie_word_embeddings=True,
            eos_token_ids=self.eos_token_ids,
            pad_token_id=self.pad_token_id,
        )
