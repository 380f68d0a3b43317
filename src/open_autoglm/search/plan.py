# SPDX-License-Identifier: Apache-2.0
"""How a budget is divided: so many trials, each of so much computation, and the rest for the winner.

The plan is made once, from the budget and a short measurement of the machine, and written down. After that trials
count computation and not seconds, so that a build that was killed and continued takes the same decisions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from open_autoglm.errors import BudgetError
from open_autoglm.models.config import ModelConfig

RUNGS: Final = 9
"""Evaluations in a full trial; with a reduction factor of 3, trials can end after 1, 3 or 9 of them."""

_SEARCH_SHARE: Final = 0.12
_TRIAL_SHARE: Final = 0.05
_FULL_TRIALS_PER_TRIAL: Final = 0.6
_MAX_TRIALS: Final = 30
_MIN_STEPS: Final = 40
_MIN_EPOCHS: Final = 0.25
_TRIAL_EPOCHS: Final = 0.5
_LONGEST_TRIAL: Final = 0.6
_FINISH_SHARE: Final = 0.04
_FINISH_SECONDS: Final = (12.0, 40.0)
_SLACK_SHARE: Final = 0.012
_SLACK_SECONDS: Final = 1.5
_LEAST_OBSERVED: Final = 3


@dataclass(frozen=True)
class Plan:
    """What the build will spend, and on what.

    trials: how many to start at most. trial_flops: floating-point operations of one full trial; None when steps are
    given. trial_steps: optimiser steps of one full trial; None when time is given. search_seconds, train_seconds: the
    time for both; None when steps are given. train_steps: the steps of the winner, counted from its first as a trial;
    None when time is given. threads: of one model's training, those that were measured to be fastest; None for
    PyTorch's own choice. parallel: trials at a time, each with trial_threads. train_flops: what the winner's training
    computes. evolution_seconds: for the architectures, of the search's time. finish_seconds: kept back for compressing,
    scoring and packaging, before that could be measured.
    """

    trials: int
    trial_flops: float | None
    trial_steps: int | None
    search_seconds: float | None
    train_seconds: float | None
    train_steps: int | None
    threads: int | None = None
    parallel: int = 1
    trial_threads: int | None = None
    train_flops: float | None = None
    evolution_seconds: float = 0.0
    finish_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`; what an older version did not write has its default."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def steps_of_trial(self, config: ModelConfig, tokens_per_batch: int, mean_length: float) -> int:
        """The optimiser steps of a full trial of this model: at least one for each rung."""
        if self.trial_steps is not None:
            return max(RUNGS, self.trial_steps)
        if self.trial_flops is None:
            raise BudgetError(
                "the plan names neither steps nor computation for a trial; delete the run and start again"
            )
        return max(RUNGS, round(self.trial_flops / (training_flops(config, mean_length) * tokens_per_batch)))

    def flops_at_end(self, config: ModelConfig, tokens_per_batch: int, mean_length: float) -> float:
        """What training a model to the plan's end computes, its trial included."""
        if self.train_steps is not None:
            return self.train_steps * training_flops(config, mean_length) * tokens_per_batch
        return (self.trial_flops or 0.0) + (self.train_flops or 0.0)


def training_flops(config: ModelConfig, mean_length: float, learn_share: float = 0.5) -> float:
    """Floating-point operations to train on one token: forward and twice that backward.

    learn_share: the share of tokens to which the output matrix is applied.
    """
    output = config.vocab_size * config.hidden_size * learn_share
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * mean_length
    return 6 * (config.num_decoder_parameters() + output + attention)


def plan_by_steps(steps: int, trials: int | None, *, parallel: int = 1) -> Plan:
    """A plan that looks at no clock: `steps` for the winner, a third of that for a full trial.

    Raises BudgetError when there are too few steps for that.
    """
    if steps < RUNGS * 3:
        raise BudgetError(f"--steps {steps} is too few to train anything; {RUNGS * 3} is the least")
    return Plan(
        trials or 4, None, steps // 3, None, None, steps, parallel=parallel, trial_threads=1 if parallel > 1 else None
    )


def plan_by_time(
    *,
    budget: float,
    elapsed: float,
    flops_per_second: float,
    step_flops: float,
    epoch_flops: float,
    trials: int | None,
    threads: int | None = None,
    parallel: int = 1,
    parallel_flops_per_second: float | None = None,
    evolution_seconds: float = 0.0,
) -> Plan:
    """Divide what is left of `budget` seconds after `elapsed`.

    step_flops, epoch_flops: of the default candidate, for one step and for one pass over the data. parallel,
    parallel_flops_per_second: how many trials run at a time, and how fast each is then. evolution_seconds: wanted for
    an evolution of architectures.
    A share is kept back for compressing, scoring and packaging. A trial sees half of the data at least where the search
    has the time for one such and a third of another; where it has not, there is only one, and the winner is trained for
    all the time. Raises BudgetError, naming a budget that would do,
    when the winner would see less than a quarter of the data or forty steps.
    """
    needed = max(_MIN_STEPS * step_flops, _MIN_EPOCHS * epoch_flops) / flops_per_second
    reserve = finish_seconds(budget)
    left = budget - elapsed - reserve - evolution_seconds
    train_seconds = left * (1 - _SEARCH_SHARE)
    if train_seconds < needed:
        least = elapsed + evolution_seconds + needed / (1 - _SEARCH_SHARE)
        enough = max((least + _SLACK_SECONDS) / (1 - _FINISH_SHARE - _SLACK_SHARE), least + _FINISH_SECONDS[0] + 3)
        suggestion = math.ceil(enough * 1.25 / 30) * 30
        raise BudgetError(
            f"a budget of {format_seconds(budget)} is too short to train anything on this data and machine; "
            f"--budget {format_seconds(suggestion)} would do, more is better"
        )
    search_seconds = left * _SEARCH_SHARE
    rate = parallel_flops_per_second or flops_per_second
    half = _TRIAL_EPOCHS * epoch_flops / rate
    trial_seconds = min(max(left * _TRIAL_SHARE, half), _LONGEST_TRIAL * search_seconds)
    fitting = round(parallel * search_seconds / trial_seconds / _FULL_TRIALS_PER_TRIAL)
    if half > trial_seconds:
        fitting = 1
    return Plan(
        trials=trials or min(_MAX_TRIALS, max(1, fitting)),
        trial_flops=trial_seconds * rate,
        trial_steps=None,
        search_seconds=search_seconds,
        train_seconds=train_seconds,
        train_steps=None,
        threads=threads,
        parallel=parallel,
        trial_threads=1 if parallel > 1 else None,
        train_flops=train_seconds * flops_per_second,
        evolution_seconds=evolution_seconds,
        finish_seconds=reserve,
    )


def finish_seconds(budget: float) -> float:
    """What a budget keeps back for the steps after training, while nothing of them is measured."""
    return min(max(_FINISH_SHARE * budget, _FINISH_SECONDS[0]), _FINISH_SECONDS[1]) + slack_seconds(budget)


def slack_seconds(budget: float) -> float:
    """What no measurement foresees: small, since a budget is kept within five percent on both sides."""
    return _SLACK_SECONDS + _SLACK_SHARE * budget


def measured_finish_seconds(
    budget: float, *, start_seconds: float, seconds_per_answer: float, answers: int, size_bytes: int
) -> float:
    """What the steps after training will take, from what the search measured.

    start_seconds: until a step's process has loaded its libraries; there are two such steps. answers: that are decoded
    to score: of the validation split twice after training and twice while compressing, of the test split once.
    size_bytes: of the float32 weights, which are written, read and hashed a few times.
    """
    files = 12 * size_bytes / 200e6
    return 2 * start_seconds + answers * seconds_per_answer + files + slack_seconds(budget)


def finish_seconds_again(found: Mapping[str, Any], seconds_per_answer: float) -> float:
    """`measured_finish_seconds` with answers that take another time.

    found: what the search wrote down: `finish_seconds` for `answers`, each in `seconds_per_answer`. Without the last
    two, as an older version left them out, it stays as it was.
    """
    answers, before = found.get("answers", 0), found.get("seconds_per_answer", 0.0)
    return float(found["finish_seconds"]) + answers * (seconds_per_answer - before)


def another_trial_pays(promises: Sequence[float], *, seconds: float, gain_per_second: float) -> bool:
    """Whether a trial is likely to lower the best promised loss by more than its time would in the last training.

    promises: the losses that the trials so far promise at the end, the best being trained on. seconds: of a trial.
    gain_per_second: by what the loss falls for each second more of the last training.
    With less than three trials there is nothing to tell from, and it is taken to pay. Promises are taken as normally
    distributed: the next one lowers the least by sigma (phi(z) - z (1 - Phi(z))) with z their distance from the mean.
    Source: expected improvement, Jones et al. 1998.
    """
    if len(promises) < _LEAST_OBSERVED:
        return True
    mean, deviation = statistics.fmean(promises), statistics.stdev(promises)
    if deviation <= 0:
        return False
    z = (mean - min(promises)) / deviation
    normal = statistics.NormalDist()
    expected = deviation * (normal.pdf(z) - z * (1 - normal.cdf(z)))
    return expected > seconds * gain_per_second


def format_seconds(seconds: float) -> str:
    """`90` -> `90s`, `900` -> `15m`: as `--budget` takes it."""
    whole = math.ceil(seconds)
    return f"{whole // 60}m" if whole >= 120 and whole % 60 == 0 else f"{whole}s"
