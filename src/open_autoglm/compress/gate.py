# SPDX-License-Identifier: Apache-2.0
"""The gate: formats of a model's weights from the smallest up, and the smallest that is shown to lose little."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.compress.paired_bootstrap import CONFIDENCE, ExampleScores, Loss, paired_loss, relative

DEFAULT_TOLERANCE: Final = 0.01
"""The share of the metric that a smaller format may cost."""

FEWEST_EXAMPLES: Final = 100
"""Of the validation split, for 4 bits to be taken: that so few came out alike shows little about the others."""


@dataclass(frozen=True)
class Format:
    """One form of the weights. weights: as engines call it. method: how it is rounded. bits: of a weight."""

    weights: str
    method: str
    bits: int

    @property
    def name(self) -> str:
        """For people."""
        return (
            self.weights if self.method in ("", "rtn") and self.weights != "int4" else f"{self.weights} {self.method}"
        )


EXACT: Final = Format("float32", "", 32)
ORDER: Final = (Format("int4", "gptq", 4), Format("int8", "rtn", 8), Format("int4", "awq", 4), Format("int4", "rtn", 4))
"""In the order in which they are tried while there is time: the likeliest of the smallest, then what seldom fails."""

_CALIBRATED: Final = ("gptq", "awq")


@dataclass(frozen=True)
class Latency:
    """On the engine: tokens per second of a prompt, and milliseconds per token of one answer."""

    prompt_tokens_per_second: float
    milliseconds_per_token: float


@dataclass(frozen=True)
class Trial:
    """A format tried. size: bytes of its file. metric: on the validation split. loss: against float32, as a share.

    loss_bound: what the loss is at most, with the gate's confidence.
    """

    format: Format
    file: str
    size: int
    metric: float
    loss: float
    loss_bound: float
    accepted: bool
    latency: Latency | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "name": self.format.name}


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    left_out: formats for which there was no time. unjudged: those that were not tried, since nothing could show what
    they cost.
    """

    trials: tuple[Trial, ...]
    chosen: Trial
    tolerance: float
    left_out: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()

    def best(self, weights: str) -> Trial | None:
        """The trial of that form of weights that was accepted with the best metric; nothing if none was."""
        found = [trial for trial in self.trials if trial.format.weights == weights and trial.accepted]
        return min(found, key=lambda trial: trial.loss, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "tolerance": self.tolerance,
            "confidence": CONFIDENCE,
            "chosen": self.chosen.format.name,
            "left_out": list(self.left_out),
            "unjudged": list(self.unjudged),
            "formats": [trial.to_dict() for trial in self.trials],
        }


def decide(
    make: Callable[[Format], Path],
    score: Callable[[Format], ExampleScores],
    measure: Callable[[Format], Latency | None],
    *,
    higher_is_better: bool,
    tolerance: float = DEFAULT_TOLERANCE,
    seconds: float | None = None,
    calibration_seconds: float = 0.0,
    order: Sequence[Format] = ORDER,
) -> Decision:
    """Try formats and choose the smallest whose loss is at most `tolerance` of the metric, with confidence.

    make: write a format's weights, and say where. score: a format's scores, example by example, the same examples each
    time. measure: its speed on the engine. seconds: for all of it; no further format is begun that would take longer
    than what is left; None for no limit. calibration_seconds: what the first format that is calibrated will take
    besides, about. float32 is scored first and int8 always tried. 4 bits are not tried where nothing shows what they
    cost: with few examples, or of a model that gets nothing right.
    """
    began = time.monotonic()
    exact = score(EXACT)
    can_tell = len(exact.values) >= FEWEST_EXAMPLES and exact.metric != 0
    file = make(EXACT)
    spent = time.monotonic() - began
    trials = [_trial(EXACT, file, exact, Loss(0.0, 0.0, 0.0), exact.metric, tolerance, measure(EXACT), spent)]
    left_out: list[str] = []
    unjudged: list[str] = []
    longest = exact_seconds = time.monotonic() - began
    for tried in order:
        if tried.weights == "int4" and not can_tell:
            unjudged.append(tried.name)
            continue
        left = None if seconds is None else seconds - (time.monotonic() - began)
        is_first = tried.method in _CALIBRATED and not any(trial.format.method in _CALIBRATED for trial in trials)
        needed = longest + (calibration_seconds if is_first else 0.0)
        if "int8" not in {trial.format.weights for trial in trials}:
            needed += exact_seconds  # int8 comes anyway, and takes about as long as float32
        if left is not None and left < needed and tried.weights != "int8":
            left_out.append(tried.name)
            continue
        started = time.monotonic()
        file = make(tried)
        found = score(tried)
        loss = paired_loss(exact, found, higher_is_better=higher_is_better)
        latency = measure(tried)
        spent = time.monotonic() - started
        longest = max(longest, spent)
        trials.append(_trial(tried, file, found, loss, exact.metric, tolerance, latency, spent))
    accepted = [trial for trial in trials if trial.accepted]
    # Files of the same width are as good as equal in size; then the metric decides.
    chosen = min(accepted, key=lambda trial: (trial.format.bits, trial.loss))
    return Decision(tuple(trials), chosen, tolerance, tuple(left_out), tuple(unjudged))


def _trial(  # noqa: PLR0917
    tried: Format,
    file: Path,
    scores: ExampleScores,
    loss: Loss,
    metric: float,
    tolerance: float,
    latency: Latency | None,
    seconds: float,
) -> Trial:
    share, bound = relative(loss.value, metric), relative(loss.high, metric)
    return Trial(
        tried,
        file.name,
        file.stat().st_size,
        scores.metric,
        share,
        bound,
        tried is EXACT or bound <= tolerance,
        latency,
        round(seconds, 2),
    )
