# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameter and architecture search: TPE proposes, Hyperband stops what lags, a kill loses nothing.

A trial that was cut off is continued from its checkpoint: same number, same parameters, same samples. Trials train at
a constant rate, so that the winner goes on from where its trial ended and none of its time is lost. This process alone
writes what is known of the trials; where they run is the executor's business.
"""

from __future__ import annotations

import math
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import optuna
from optuna.trial import TrialState

from open_autoglm.errors import TrainingError
from open_autoglm.search.curves import extrapolate, fit_power_law
from open_autoglm.search.executors import Executor
from open_autoglm.search.journal import CommittedJournal
from open_autoglm.search.leaderboard import Entry
from open_autoglm.search.parameters import Value
from open_autoglm.search.plan import RUNGS, Plan, another_trial_pays
from open_autoglm.search.plugin_sampler import PluginSampler
from open_autoglm.search.space import Candidate, SearchSpace
from open_autoglm.search.trial import REDUCTION, Rung, TrialOrder, TrialRecord

_STUDY: Final = "build"
_RECORD: Final = "record"
_NEAR_DEFAULT: Final = 3
"""Trials after the first that stay near it: with few trials, a known good place is worth more than a random one."""

_CHALLENGE_MARGIN: Final = 0.2
"""The share of the first trial's expected loss by which another must be lower to take its place."""

_FRONT_MARGIN: Final = 0.02
"""The same where the first trial is one of an evolution's architectures, of which nothing is known beforehand."""

_KEPT: Final = 3


class Watcher(Protocol):
    """What is told of the search as it goes on."""

    def started(self, trial: int, parameters: dict[str, Any]) -> None:
        """A trial begins."""
        ...

    def stepped(self, trial: int, step: int, steps: int, seconds: float) -> None:
        """A trial has come so far."""
        ...

    def judged(self, rung: Rung) -> None:
        """A trial has passed a rung."""
        ...

    def finished(self, record: TrialRecord) -> None:
        """A trial has ended."""
        ...


@dataclass(frozen=True)
class TrialOutcome:
    """The trial that the final training goes on with."""

    number: int
    candidate: Candidate
    folder: Path
    steps: int
    seconds: float
    record: TrialRecord


class Tuner:
    """One search in one folder, which this process holds locked.

    mean_length: tokens of an example. executor: where trials run. sampler: a plugin that proposes trials after the
    first, in place of TPE.
    """

    def __init__(
        self,
        folder: Path,
        space: SearchSpace,
        plan: Plan,
        executor: Executor,
        *,
        mean_length: float,
        watcher: Watcher,
        sampler: str | None = None,
    ) -> None:
        self._sampler = None if sampler is None else PluginSampler(sampler)
        self.folder, self.space, self.plan = folder, space, plan
        self._executor, self._mean_length, self._watcher = executor, mean_length, watcher
        self._journal = CommittedJournal(folder)
        self._study = self._open_study()
        self._open: dict[int, optuna.trial.Trial] = {}

    def run(self) -> TrialOutcome:
        """Run trials until the plan's count or time is used up, or another one would not pay. Returns the best one.

        Raises TrainingError when no trial finished.
        """
        for frozen in self._study.get_trials(states=(TrialState.RUNNING,)):
            trial = optuna.trial.Trial(self._study, frozen._trial_id)  # pyright: ignore[reportPrivateUsage]
            self._begin(trial, reported=max(frozen.intermediate_values, default=0))
            self._wait_for_room()
        while self._may_start():
            self._begin(self._ask())
            self._wait_for_room()
        while self._open:
            self._executor.wait(self)
        outcome = self._best()
        self._drop_checkpoints({outcome.number})
        return outcome

    def entries(self) -> list[Entry]:
        """The rows of all trials for the leaderboard."""
        return [
            Entry(
                name=f"trial {trial.number}",
                kind="trial",
                score=record.score,
                state=record.state,  # type: ignore[arg-type]
                valid_loss=record.valid_loss,
                parameters=record.parameters,
                seconds=record.seconds,
                choices=trial.params,
                interval=record.interval,
                size_bytes=record.size_bytes,
                latency_ms=record.latency_ms,
                curve=tuple((seconds, loss) for _, seconds, loss in record.curve),
            )
            for trial, record in self._records()
        ]

    def decide(self, rung: Rung) -> bool:
        """Store a trial's value at a rung; whether it goes on. A trial that does not is finished at once."""
        trial = self._open[rung.trial]
        trial.report(rung.value, rung.rung)
        self._watcher.judged(rung)
        if rung.rung < RUNGS and (trial.should_prune() or self._lags(rung)):
            # Committed with the trial's end: a pruned trial that still runs must not exist after a kill.
            self._tell(_pruned(rung))
            return False
        self._journal.commit()
        return True

    def _lags(self, rung: Rung) -> bool:
        """Whether a trial near the first one is no better after a third of its way.

        It would have to be better by `_CHALLENGE_MARGIN` in the end, and the time is worth more to the last training.
        Of a front's architectures, and of what a plugin proposes, nothing is known that would say so.
        """
        is_near = self._sampler is None and not self.space.front and 1 <= rung.trial <= _NEAR_DEFAULT
        if not is_near or rung.rung < REDUCTION:
            return False
        first = self._study.get_trials(deepcopy=False)[0].intermediate_values.get(rung.rung)
        return first is not None and rung.value >= first

    def note(self, trial: int, step: int, steps: int, seconds: float) -> None:
        """Pass a trial's progress on."""
        self._watcher.stepped(trial, step, steps, seconds)

    def finish(self, record: TrialRecord) -> None:
        """Store a trial's end, unless its pruning was stored already."""
        if record.trial in self._open:
            self._tell(record)

    def _tell(self, record: TrialRecord) -> None:
        trial = self._open.pop(record.trial)
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
        state = states.get(record.state, TrialState.FAIL)
        trial.set_user_attr(_RECORD, record.to_dict())
        self._study.tell(trial, record.value if state is TrialState.COMPLETE else None, state=state)
        self._journal.commit()
        self._watcher.finished(record)
        self._drop_checkpoints(self._worth_keeping())

    def _ask(self) -> optuna.trial.Trial:
        """The next trial: the space's defaults, then some near them, then what TPE proposes from the trials so far."""
        number = len(self._study.get_trials(deepcopy=False))
        space = self.space.parameters
        self._study.sampler = _sampler(self.space, number)
        if number == 0:
            self._study.enqueue_trial(space.check(self.space.defaults))
        elif self._sampler is not None:
            ended = [(dict(trial.params), record.value) for trial, record in self._records()]
            self._study.enqueue_trial(self._sampler.propose(space, ended, self.space.seed * 10_007 + number))
        elif number <= _NEAR_DEFAULT:
            generator = np.random.default_rng((self.space.seed, number))
            self._study.enqueue_trial(dict(space.near(space.check(self.space.defaults), generator)))
        trial = self._study.ask()
        self._suggest(trial)
        self._journal.commit()
        self._watcher.started(trial.number, dict(trial.params))
        return trial

    def _begin(self, trial: optuna.trial.Trial, *, reported: int = 0) -> None:
        candidate = self.space.candidate(self._suggest(trial))
        steps = self.plan.steps_of_trial(candidate.config, candidate.settings.tokens_per_batch, self._mean_length)
        order = TrialOrder.of(
            trial.number,
            candidate,
            self._folder_of(trial.number),
            steps,
            reported=reported,
            threads=self.plan.threads if trial.number in self._alone else self.plan.trial_threads or self.plan.threads,
            is_only=self.plan.trials == 1,
        )
        self._open[trial.number] = trial
        self._executor.submit(order)

    def _suggest(self, trial: optuna.trial.Trial) -> dict[str, Value]:
        try:
            return self.space.parameters.suggest(trial)
        except ValueError as error:
            raise TrainingError(
                f"{self.folder}: trials of this search chose among other values ({error}); it was begun with another "
                "space, or by another version of Open-AutoGLM: finish it with that, or begin a run with another name"
            ) from None

    def _wait_for_room(self) -> None:
        while len(self._open) >= self._executor.capacity or not self._alone.isdisjoint(self._open):
            self._executor.wait(self)

    @property
    def _alone(self) -> set[int]:
        """Trials with nothing beside them: under a budget the first, by which it is told of others whether they lag."""
        return {0} if self.plan.search_seconds is not None else set()

    def _open_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.create_study(
                study_name=_STUDY,
                storage=self._journal.storage,
                pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS, reduction_factor=REDUCTION),
                direction="minimize",
                load_if_exists=True,
            )

    def _may_start(self) -> bool:
        number = len(self._study.get_trials(deepcopy=False))
        if number >= self.plan.trials:
            return False
        records = [record for _, record in self._records()]
        if self.plan.search_seconds is None or not records:
            return True
        typical = sum(record.seconds for record in records) / len(records)
        alone = sum(record.seconds for record in records if record.trial in self._alone)
        beside = (len(records) + len(self._open)) * typical - alone
        if alone + beside / self.plan.parallel + 0.5 * typical >= self.plan.search_seconds:
            return False
        return self._pays(typical / self.plan.parallel)

    def _pays(self, seconds: float) -> bool:
        """Whether another trial of so many seconds is worth more than as many seconds of the last training."""
        complete = [(trial, record) for trial, record in self._records() if record.state == "complete"]
        if not complete or not self.plan.train_flops or not self.plan.train_seconds:
            return True
        promises = [self._promise(trial, record) for trial, record in complete]
        trial, record = complete[int(np.argmin(promises))]
        law = fit_power_law([(flops, loss) for flops, _, loss in record.curve])
        if law is None:
            return True
        end = self._end_of(trial, record)
        speed = self.plan.train_flops / self.plan.train_seconds
        gain = max(0.0, law.at(max(1.0, end - seconds * speed)) - law.at(end))
        return another_trial_pays(promises, seconds=seconds, gain_per_second=gain / max(seconds, 1e-9))

    def _records(self) -> list[tuple[optuna.trial.FrozenTrial, TrialRecord]]:
        found: list[tuple[optuna.trial.FrozenTrial, TrialRecord]] = []
        for trial in self._study.get_trials(deepcopy=False):
            if _RECORD in trial.user_attrs and trial.state.is_finished():
                found.append((trial, TrialRecord(**trial.user_attrs[_RECORD])))
        return found

    def _promise(self, trial: optuna.trial.FrozenTrial, record: TrialRecord) -> float:
        """The loss at the end of the last training, if this trial were the one to go on."""
        return extrapolate([(flops, loss) for flops, _, loss in record.curve], self._end_of(trial, record))

    def _expected(self, trial: optuna.trial.FrozenTrial, record: TrialRecord) -> float:
        """The mean, in logarithms, of a trial's last loss and the one that it promises.

        The promise alone favours curves that happen to be steep where they were cut off: a law that was seen over a
        tenth of a training says little of its end. The loss alone favours models that learn fast and end high.
        """
        promise = self._promise(trial, record)
        last = record.curve[-1][2] if record.curve else promise
        return math.sqrt(max(promise, 0.0) * max(last, 0.0))

    def _end_of(self, trial: optuna.trial.FrozenTrial, record: TrialRecord) -> float:
        """The floating-point operations of the last training: where that has a time, those that this model would do."""
        if self.plan.train_seconds and self.plan.parallel == 1 and record.curve and record.curve[-1][1] > 0:
            done, seconds, _ = record.curve[-1]
            return done + self.plan.train_seconds * done / seconds
        candidate = self.space.candidate(trial.params)
        return self.plan.flops_at_end(candidate.config, candidate.settings.tokens_per_batch, self._mean_length)

    def _ranked(self) -> list[tuple[optuna.trial.FrozenTrial, TrialRecord]]:
        """Finished trials, the one to go on with first.

        Completed trials come before pruned ones. Of those whose metric is not clearly below the best one, the lowest
        expected loss wins; but the first trial, whose parameters are known to hold up over long training, gives way
        only to one that is clearly ahead.
        """
        complete = [pair for pair in self._records() if pair[1].state == "complete"]
        rest = [pair for pair in self._records() if pair[1].state == "pruned"]
        rest.sort(key=lambda pair: (self._promise(*pair), pair[0].number))
        if not complete:
            return rest
        best = min(record.value for _, record in complete)
        noise = max(1 / max(1, record.examples) ** 0.5 for _, record in complete)
        scored = all(record.score is not None and record.value < 2.0 for _, record in complete)
        expected = {trial.number: self._expected(trial, record) for trial, record in complete}
        margin = _FRONT_MARGIN if self.space.front else _CHALLENGE_MARGIN

        def place(pair: tuple[optuna.trial.FrozenTrial, TrialRecord]) -> tuple[bool, float, int]:
            trial, record = pair
            lags = scored and record.value > best + noise
            favour = 1 - margin if trial.number == 0 else 1.0
            return lags, expected[trial.number] * favour, trial.number

        return [*sorted(complete, key=place), *rest]

    def _best(self) -> TrialOutcome:
        ranked = self._ranked()
        if not ranked:
            failures = [record.failure or "" for _, record in self._records()]
            raise TrainingError(f"no trial finished: {next(filter(None, failures), 'the search had no time for one')}")
        trial, record = next((pair for pair in ranked if self._folder_of(pair[0].number).exists()), ranked[0])
        return TrialOutcome(
            trial.number,
            self.space.candidate(trial.params),
            self._folder_of(trial.number),
            record.steps,
            record.seconds,
            record,
        )

    def _worth_keeping(self) -> set[int]:
        """The trials that may yet be the one to go on with: the first few by what is known now."""
        return {trial.number for trial, _ in self._ranked()[:_KEPT]} | {0} | set(self._open)

    def _drop_checkpoints(self, kept: set[int]) -> None:
        """Keep the disk small."""
        for trial, _ in self._records():
            if trial.number not in kept:
                shutil.rmtree(self._folder_of(trial.number), ignore_errors=True)

    def _folder_of(self, number: int) -> Path:
        return self.folder / "trials" / f"{number:04d}"


def _pruned(rung: Rung) -> TrialRecord:
    return TrialRecord(
        trial=rung.trial,
        state="pruned",
        value=rung.value,
        parameters=rung.parameters,
        valid_loss=rung.valid_loss,
        seconds=rung.seconds,
        steps=rung.steps,
        curve=rung.curve,
    )


def _sampler(space: SearchSpace, number: int) -> optuna.samplers.TPESampler:
    """A sampler whose proposal for trial `number` depends on the seed and the trials before it alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=(space.seed * 10_007 + number) % 2**32,
            multivariate=True,
            group=any(parameter.condition is not None for parameter in space.parameters.parameters),
            n_startup_trials=_NEAR_DEFAULT,
        )
