# SPDX-License-Identifier: Apache-2.0
"""Benches for trials that are over in a moment: tiny models on random tokens, in this process or in others."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from open_autoglm.data import TokenizedExamples
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.search.parameters import ParameterSpace, categorical, integer, log_uniform
from open_autoglm.search.space import Candidate, Frame, SearchSpace, default_space
from open_autoglm.search.trial import Judgement
from open_autoglm.task import TaskKind
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples

OPENED_BY = f"{__name__}:open_bench"
FRAME = Frame(64, 64, (0,), 0)


def small_space() -> SearchSpace:
    space = default_space(TaskKind.EXTRACTION, FRAME, seed=5)
    parameters = ParameterSpace(
        (integer("layers", 1, 2), log_uniform("learning_rate", 1e-3, 4e-3), categorical("tokens_per_batch", (64, 128)))
    )
    defaults = {"layers": 1, "learning_rate": 2e-3, "tokens_per_batch": 64}
    fixed = {"hidden_size": 32, "feed_forward_ratio": 2.0}
    return SearchSpace(FRAME, 5, parameters, defaults, fixed, training=space.training)


class TinyBench:
    """Judges a model by its loss, so that the metric says what the loss says."""

    higher_is_better = True
    mean_length = 8.0

    def __init__(self, die_at: dict[str, int] | None = None, marks: str | None = None) -> None:
        torch.set_num_threads(1)
        generator = np.random.default_rng(0)
        lengths = generator.integers(4, 12, 80)
        self.valid = TokenizedExamples(
            generator.integers(0, 64, lengths.sum()).astype(np.int32),
            np.ones(lengths.sum(), dtype=bool),
            np.concatenate([[0], np.cumsum(lengths)]),
        )
        self._die_at, self._marks = die_at or {}, marks
        self._judged = 0

    def make_model(self, candidate: Candidate) -> GlmForCausalLM:
        model = GlmForCausalLM(candidate.config)
        model.initialize(torch.Generator().manual_seed(0))
        return model

    def make_source(self, settings: TrainingSettings) -> FixedExamples:
        return FixedExamples(self.valid)

    def measure(self, threads: int) -> float:
        return 1e9 * threads

    def judge(self, model: GlmForCausalLM, *, is_final: bool) -> Judgement:
        self._judged += 1
        if self._marks is not None:
            mark = Path(self._marks) / f"died-{self._judged}"
            if self._judged == self._die_at.get("judgement") and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self._die_at.get("always"):
                os.kill(os.getpid(), signal.SIGKILL)
        with torch.no_grad():
            size = float(sum(parameter.abs().sum() for parameter in model.parameters()))
        return Judgement(score=1 / (1 + size / 1e5), examples=64, interval=(0.0, 1.0) if is_final else None)


def open_bench(context: dict[str, Any]) -> TinyBench:
    return TinyBench(context.get("die_at"), context.get("marks"))


class Quiet:
    """A watcher that counts, and calls a function at each event."""

    def __init__(self, on_event: Any = None) -> None:
        self.finished_trials: list[int] = []
        self._on_event = on_event or (lambda: None)

    def started(self, trial: int, parameters: dict[str, Any]) -> None:
        self._on_event()

    def stepped(self, trial: int, step: int, steps: int, seconds: float) -> None:
        self._on_event()

    def judged(self, rung: Any) -> None:
        self._on_event()

    def finished(self, record: Any) -> None:
        self.finished_trials.append(record.trial)
        self._on_event()
