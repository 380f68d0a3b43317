# SPDX-License-Identifier: Apache-2.0
"""Where the trials of a build are trained and judged, in the search's own process or in others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import torch

from open_autoglm.build_steps.workspace import Workspace
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.size import int8_bytes
from open_autoglm.search.space import Candidate
from open_autoglm.search.speed import measure_flops_per_second
from open_autoglm.search.trial import Judgement
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import ExampleSource

RUNG_EXAMPLES: Final = 64
"""Validation examples that a trial is judged by on its way."""

FINAL_EXAMPLES: Final = 200
"""Those that it is judged by at its end."""

OPENED_BY: Final = f"{__name__}:open_bench"
"""How a process for trials finds `open_bench`."""


def open_bench(context: dict[str, Any]) -> TrialBench:
    """The bench of a run. context: its `folder` and the `payload` that the search was begun with."""
    return TrialBench(Workspace.at(Path(context["folder"]), context["payload"]))


class TrialBench:
    """Trials on the data of one build."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self.valid = work.rung_valid
        self.mean_length = work.mean_length
        self.higher_is_better = work.task.higher_is_better

    def make_model(self, candidate: Candidate) -> GlmForCausalLM:
        """A model to train."""
        return self._work.make_model(candidate)

    def make_source(self, settings: TrainingSettings) -> ExampleSource:
        """The training examples."""
        return self._work.make_source(settings)

    def measure(self, threads: int) -> float:
        """Floating-point operations a second of training the first candidate here."""
        space = self._work.space()
        default = space.candidate(space.parameters.check(space.defaults))
        return measure_flops_per_second(self, default, self._work.folder / "search" / "speed", threads=threads)

    def judge(self, model: GlmForCausalLM, *, is_final: bool) -> Judgement:
        """The task's metric, and at the end of a trial how sure it is, how fast and how large the model is."""
        examples = self._work.prepared.valid[: FINAL_EXAMPLES if is_final else RUNG_EXAMPLES]
        started = time.monotonic()
        threads = torch.get_num_threads()
        evaluation = self._work.score(model, examples, with_intervals=is_final, threads=threads)
        seconds = time.monotonic() - started
        return Judgement(
            score=evaluation.value,
            examples=evaluation.n,
            interval=evaluation.interval,
            latency_ms=self._work.latency(model, threads=threads) if is_final else None,
            size_bytes=int8_bytes(model.config),
            seconds=seconds,
        )
