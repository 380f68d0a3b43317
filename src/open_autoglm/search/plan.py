# SPDX-License-Identifier: Apache-2.0
"""How a budget is divided: so many trials, each of so much computation, and the rest for the winner.

The plan is made once, from the budget and a short measurement of the machine, and written down. After that trials
count computation and not seconds, so that a build that was killed and continued takes the same decisions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from open_autoglm.errors import BudgetError
from open_autoglm.models.config import ModelConfig

RUNGS: Final = 9
"""Evaluations in a full trial; with a reduction factor of 3, trials can end after 1, 3 or 9 of them."""

_SEARCH_SHARE: Final = 0.3
_TRIAL_SHARE: Final = 0.12
_FULL_TRIALS_PER_TRIAL: Final = 0.6
_RESERVE_SHARE: Final = 0.15
_RESERVE_SECONDS: Final = (15.0, 120.0)
_MAX_TRIALS: Final = 30
_MIN_STEPS: Final = 40
_MIN_EPOCHS: Final = 0.25


@dataclass(frozen=True)
class Plan:
    """What the build will spend, and on what.

    trials: how many to start. trial_flops: floating-point operations of one full trial; None when steps are given.
    trial_steps: optimiser steps of one full trial; None when time is given.
    search_seconds, train_seconds: the time for both; None when steps are given. train_steps: the steps of the
    winner, counted from its first as a trial; None when time is given. threads: of one model's training, those that
    were measured to be fastest; None for PyTorch's own choice.
    """

    trials: int
    trial_flops: float | None
    trial_steps: int | None
    search_seconds: float | None
    train_seconds: float | None
    train_steps: int | None
    threads: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `Plan(**values)` reads it back."""
        return asdict(self)

    def steps_of_trial(self, config: ModelConfig, tokens_per_batch: int, mean_length: float) -> int:
        """The optimiser steps of a full trial of this model: at least one for each rung."""
        if self.trial_steps is not None:
            return max(RUNGS, self.trial_steps)
        if self.trial_flops is None:
            raise BudgetError(
                "the plan names neither steps nor computation for a trial; delete the run and start again"
            )
        return max(RUNGS, round(self.trial_flops / (training_flops(config, mean_length) * tokens_per_batch)))


def training_flops(config: ModelConfig, mean_length: float, learn_share: float = 0.5) -> float:
    """Floating-point operations to train on one token: forward and twice that backward.

    learn_share: the share of tokens to which the output matrix is applied.
    """
    output = config.vocab_size * config.hidden_size * learn_share
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * mean_length
    return 6 * (config.num_decoder_parameters() + output + attention)


def plan_by_steps(steps: int, trials: int | None) -> Plan:
    """A plan that looks at no clock: `steps` for the winner, a third of that for a full trial.

    Raises BudgetError when there are too few steps for that.
    """
    if steps < RUNGS * 3:
        raise BudgetError(f"--steps {steps} is too few to train anything; {RUNGS * 3} is the least")
    return Plan(trials or 4, None, steps // 3, None, None, steps)


def plan_by_time(
    *,
    budget: float,
    elapsed: float,
    flops_per_second: float,
    step_flops: float,
    epoch_flops: float,
    trials: int | None,
    threads: int | None = None,
) -> Plan:
    """Divide what is left of `budget` seconds after `elapsed`.

    step_flops, epoch_flops: of the default candidate, for one step and for one pass over the data.
    A share is kept back for compressing, scoring and packaging. Raises BudgetError, naming a budget that would do,
    when the winner would see less than a quarter of the data or forty steps.
    """
    needed = max(_MIN_STEPS * step_flops, _MIN_EPOCHS * epoch_flops) / flops_per_second
    left = budget - elapsed - reserve_seconds(budget)
    train_seconds = left * (1 - _SEARCH_SHARE)
    if train_seconds < needed:
        enough = elapsed + needed / (1 - _SEARCH_SHARE)
        enough = max(enough / (1 - _RESERVE_SHARE), enough + _RESERVE_SECONDS[0])
        suggestion = math.ceil(enough * 1.25 / 30) * 30
        raise BudgetError(
            f"a budget of {format_seconds(budget)} is too short to train anything on this data and machine; "
            f"--budget {format_seconds(suggestion)} would do, more is better"
        )
    search_seconds = left * _SEARCH_SHARE
    trial_seconds = min(left * _TRIAL_SHARE, search_seconds)
    fitting = round(search_seconds / trial_seconds / _FULL_TRIALS_PER_TRIAL)
    return Plan(
        trials=trials or min(_MAX_TRIALS, max(2, fitting)),
        trial_flops=trial_seconds * flops_per_second,
        trial_steps=None,
        search_seconds=search_seconds,
        train_seconds=train_seconds,
        train_steps=None,
        threads=threads,
    )


def reserve_seconds(budget: float) -> float:
    """What a budget keeps back for the steps after training."""
    return min(max(_RESERVE_SHARE * budget, _RESERVE_SECONDS[0]), _RESERVE_SECONDS[1])


def format_seconds(seconds: float) -> str:
    """`90` -> `90s`, `900` -> `15m`: as `--budget` takes it."""
    whole = math.ceil(seconds)
    return f"{whole // 60}m" if whole >= 120 and whole % 60 == 0 else f"{whole}s"
