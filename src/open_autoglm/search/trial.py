# SPDX-License-Identifier: Apache-2.0
"""One trial: a candidate trained in rungs, judged after some, stopped when it lags; in whatever process it is given.

What goes in and out is JSON, so that a trial can run beside the search, in a process of its own or on another machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from open_autoglm.errors import TrainingError
from open_autoglm.models.config import ModelConfig
from open_autoglm.search.plan import RUNGS, training_flops
from open_autoglm.search.space import Candidate
from open_autoglm.train.settings import TrainingSettings

if TYPE_CHECKING:
    from open_autoglm.data import TokenizedExamples
    from open_autoglm.models.glm import GlmForCausalLM
    from open_autoglm.train.trainer import ExampleSource

REDUCTION: Final = 3
"""Of Hyperband: of the trials that reach a rung, one in so many goes on."""

JUDGED: Final = tuple(REDUCTION**power for power in range(1 + round(math.log(RUNGS, REDUCTION))))
"""The rungs at which trials end, where the task's metric is measured beside the loss."""

FAILED_VALUE: Final = 1e9


@dataclass(frozen=True)
class Judgement:
    """How good a model is, as the engine serves it.

    score, interval: the task's metric. examples: over how many. latency_ms: of one answer alone. size_bytes: of the
    weights in int8. seconds: that all this took.
    """

    score: float | None
    examples: int
    interval: tuple[float, float] | None = None
    latency_ms: float | None = None
    size_bytes: int | None = None
    seconds: float = 0.0


class Bench(Protocol):
    """Where trials of one data set are trained."""

    valid: TokenizedExamples
    mean_length: float
    higher_is_better: bool

    def make_model(self, candidate: Candidate) -> GlmForCausalLM:
        """A model to train, the same for the same candidate."""
        ...

    def make_source(self, settings: TrainingSettings) -> ExampleSource:
        """The training examples."""
        ...

    def judge(self, model: GlmForCausalLM, *, is_final: bool) -> Judgement:
        """The task's metric of a model on validation examples: on few of them unless it is the trial's end."""
        ...


@dataclass(frozen=True)
class TrialOrder:
    """What to train. steps: of a full trial. reported: the rungs that the search knows already, of a trial that was
    cut off. threads: of the processor, None for as many as the process has. is_only: no other trial is compared with
    it, so that it is judged at its end alone."""

    number: int
    config: dict[str, Any]
    settings: dict[str, Any]
    folder: str
    steps: int
    reported: int = 0
    threads: int | None = None
    is_only: bool = False

    @classmethod
    def of(cls, number: int, candidate: Candidate, folder: Path, steps: int, **more: Any) -> TrialOrder:
        """The order for a candidate."""
        return cls(number, candidate.config.to_dict(), candidate.settings.to_dict(), str(folder), steps, **more)

    @property
    def candidate(self) -> Candidate:
        """The candidate again."""
        return Candidate(ModelConfig.from_dict(self.config), TrainingSettings.from_dict(self.settings))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `TrialOrder(**values)` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class Rung:
    """A trial after one of its rungs: its value for the search (less is better) and what it was made of."""

    trial: int
    rung: int
    value: float
    parameters: int
    valid_loss: float
    score: float | None
    seconds: float
    steps: int
    curve: list[tuple[float, float, float]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `Rung(**values)` reads it back."""
        return asdict(self)


@dataclass(frozen=True)
class TrialRecord:
    """How a trial ended: `complete`, `pruned` or `failed`.

    curve: floating-point operations, seconds and validation loss at each rung. judging_seconds: of the last judgement,
    over `examples` validation examples.
    """

    trial: int
    state: str
    value: float
    parameters: int
    valid_loss: float | None = None
    score: float | None = None
    interval: tuple[float, float] | None = None
    latency_ms: float | None = None
    size_bytes: int | None = None
    seconds: float = 0.0
    steps: int = 0
    curve: list[tuple[float, float, float]] = field(default_factory=list)
    judging_seconds: float = 0.0
    examples: int = 0
    failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `TrialRecord(**values)` reads it back."""
        return asdict(self)


def run_trial(
    bench: Bench,
    order: TrialOrder,
    ask: Callable[[Rung], bool],
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrialRecord:
    """Train a candidate to its end, or until `ask` says after a rung that it shall stop.

    ask: told each rung that the search does not know yet; says whether to go on. on_step: step, all steps, seconds.
    A trial that was cut off goes on from its checkpoint, with the same samples. One whose training fails is a record
    with the state `failed`.
    """
    import torch

    from open_autoglm.train.gradient_workers import workers_for
    from open_autoglm.train.trainer import Schedule, Trainer

    candidate = order.candidate
    parameters = candidate.config.num_parameters()
    if order.threads is not None:
        torch.set_num_threads(order.threads)
    per_step = training_flops(candidate.config, bench.mean_length) * candidate.settings.tokens_per_batch
    curve: list[tuple[float, float, float]] = []
    judgement = Judgement(None, 0)
    rung = None
    try:
        model = bench.make_model(candidate)
        trainer = Trainer(
            model,
            candidate.settings,
            bench.make_source(candidate.settings),
            bench.valid,
            Path(order.folder),
            workers=workers_for(model, candidate.settings, order.threads),
        )
        progress = trainer.progress
        for number in range(1, RUNGS + 1):
            until = round(order.steps * number / RUNGS)
            if trainer.progress.step < until:
                trainer.run(
                    Schedule(total_steps=until),
                    lambda now, _: on_step(now.step, order.steps, now.seconds) if on_step is not None else None,
                )
            progress = trainer.progress
            row = progress.curve[number - 1]
            loss = float(row["valid_loss"])
            curve.append((row["step"] * per_step, float(row["seconds"]), loss))
            is_judged = number == RUNGS or (number in JUDGED and number > order.reported and not order.is_only)
            if not is_judged:
                continue
            with trainer.better_weights():
                judgement = bench.judge(model, is_final=number == RUNGS)
            rung = Rung(
                trial=order.number,
                rung=number,
                value=value_of(loss, judgement.score, judgement.examples, higher_is_better=bench.higher_is_better),
                parameters=parameters,
                valid_loss=loss,
                score=judgement.score,
                seconds=progress.seconds,
                steps=progress.step,
                curve=list(curve),
            )
            if number > order.reported and not ask(rung):
                break
    except TrainingError as error:
        return TrialRecord(order.number, "failed", FAILED_VALUE, parameters, failure=str(error))
    if rung is None:
        raise TrainingError(f"trial {order.number} passed no rung; the plan gives it no steps")
    is_complete = rung.rung == RUNGS
    return TrialRecord(
        trial=order.number,
        state="complete" if is_complete else "pruned",
        value=rung.value,
        parameters=parameters,
        valid_loss=rung.valid_loss,
        score=judgement.score if is_complete else None,
        interval=judgement.interval if is_complete else None,
        latency_ms=judgement.latency_ms if is_complete else None,
        size_bytes=judgement.size_bytes,
        seconds=rung.seconds,
        steps=rung.steps,
        curve=curve,
        judging_seconds=judgement.seconds,
        examples=judgement.examples,
    )


def value_of(loss: float, score: float | None, examples: int, *, higher_is_better: bool) -> float:
    """What a trial is compared by, less being better: the error of its metric, and within its noise the loss.

    A share over few examples cannot tell apart what lies closer than its standard error, and early in training it is
    often zero for all; the loss can, which counts as much as one standard error of a half. Without a score, and for a
    metric that is a loss itself, it is the loss.
    """
    squashed = loss / (1 + loss) if math.isfinite(loss) else 1.0
    if score is None or not higher_is_better:
        return loss if math.isfinite(loss) else FAILED_VALUE
    noise = 0.5 / math.sqrt(max(1, examples))
    return (1 - score) + noise * squashed
