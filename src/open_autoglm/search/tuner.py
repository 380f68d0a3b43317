# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameter and architecture search: TPE proposes, Hyperband stops what lags, a kill loses nothing.

A trial that was cut off is continued from its checkpoint: same number, same parameters, same samples. Trials train at
a constant rate, so that the winner goes on from where its trial ended and none of its time is lost.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import optuna
import torch
from optuna.trial import TrialState

from open_autoglm.data import TokenizedExamples
from open_autoglm.errors import TrainingError
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.search.journal import CommittedJournal
from open_autoglm.search.leaderboard import Entry
from open_autoglm.search.plan import RUNGS, Plan
from open_autoglm.search.space import Candidate, SearchSpace
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import ExampleSource, Schedule, Trainer

_STUDY: Final = "build"
_SPEED_STEPS: Final = 24
_FAILED_LOSS: Final = 1e9
_CHALLENGE_MARGIN: Final = 0.2
"""The share of the first trial's validation loss by which another must be lower to take its place."""


@dataclass(frozen=True)
class TrialOutcome:
    """The trial that the final training goes on with."""

    number: int
    candidate: Candidate
    folder: Path
    steps: int
    seconds: float


class Tuner:
    """One search in one folder, which this process holds locked.

    make_model: builds and fills a model for a candidate: from nothing, or from a base checkpoint.
    make_source: the training examples for given settings. report: called with each event, a JSON object.
    score: the task's metric of a model on validation examples, for trials that ran to their end.
    """

    def __init__(
        self,
        folder: Path,
        space: SearchSpace,
        plan: Plan,
        *,
        make_model: Callable[[Candidate], GlmForCausalLM],
        make_source: Callable[[TrainingSettings], ExampleSource],
        valid: TokenizedExamples,
        mean_length: float,
        score: Callable[[GlmForCausalLM], float | None],
        report: Callable[[dict[str, Any]], None],
        on_step: Callable[[int, int, int, float], None],
    ) -> None:
        self.folder, self.space, self.plan = folder, space, plan
        self._make_model, self._make_source, self._valid = make_model, make_source, valid
        self._mean_length, self._score, self._report, self._on_step = mean_length, score, report, on_step
        self._journal = CommittedJournal(folder)
        self._study = self._open_study()

    def run(self) -> TrialOutcome:
        """Run trials until the plan's count or time is used up. Returns the best one.

        Raises TrainingError when no trial finished.
        """
        for frozen in self._study.get_trials(states=(TrialState.RUNNING,)):
            trial = optuna.trial.Trial(self._study, frozen._trial_id)  # pyright: ignore[reportPrivateUsage]
            self._run_trial(trial, reported=max(frozen.intermediate_values, default=0))
        while self._may_start():
            number = len(self._started())
            self._study.sampler = _sampler(self.space.seed, number)
            trial = self._study.ask()
            self.space.suggest(trial)
            self._journal.commit()
            self._report({"event": "trial_started", "trial": trial.number, "parameters": trial.params})
            self._run_trial(trial)
        return self._best()

    def entries(self) -> list[Entry]:
        """The rows of all trials for the leaderboard."""
        states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        rows = []
        for trial in self._study.get_trials():
            record = trial.user_attrs
            if "seconds" not in record:
                continue
            rows.append(
                Entry(
                    name=f"trial {trial.number}",
                    kind="trial",
                    score=record.get("score"),
                    state=states.get(trial.state, "failed"),  # type: ignore[arg-type]
                    valid_loss=record.get("valid_loss"),
                    parameters=record.get("parameters"),
                    seconds=record["seconds"],
                    choices=trial.params,
                )
            )
        return rows

    def _open_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                study_name=_STUDY,
                storage=self._journal.storage,
                sampler=_sampler(self.space.seed, 0),
                pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS, reduction_factor=3),
                direction="minimize",
                load_if_exists=True,
            )
            if not study.get_trials(deepcopy=False):
                study.enqueue_trial(self.space.defaults())
                self._journal.commit()
        return study

    def _started(self) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]

    def _may_start(self) -> bool:
        started = self._started()
        if len(started) >= self.plan.trials:
            return False
        if self.plan.search_seconds is None or not started:
            return True
        spent = sum(trial.user_attrs.get("seconds", 0.0) for trial in started)
        return spent + 0.5 * spent / len(started) < self.plan.search_seconds

    def _run_trial(self, trial: optuna.trial.Trial, *, reported: int = 0) -> None:
        """Run a trial to its end. reported: the last rung that the storage knows of a trial that was cut off."""
        candidate = self.space.suggest(trial)
        folder = self.folder / "trials" / f"{trial.number:04d}"
        steps = self.plan.steps_of_trial(candidate.config, candidate.settings.tokens_per_batch, self._mean_length)
        record: dict[str, Any] = {"parameters": candidate.config.num_parameters()}
        state, value = TrialState.COMPLETE, _FAILED_LOSS
        try:
            model = self._make_model(candidate)
            trainer = Trainer(model, candidate.settings, self._make_source(candidate.settings), self._valid, folder)
            for rung in range(1, RUNGS + 1):
                until = round(steps * rung / RUNGS)
                if trainer.progress.step < until:
                    trainer.run(
                        Schedule(total_steps=until),
                        lambda progress, _: self._on_step(trial.number, progress.step, steps, progress.seconds),
                    )
                value = float(trainer.progress.curve[rung - 1]["valid_loss"])
                if rung <= reported:
                    continue
                trial.report(value, rung)
                if rung < RUNGS and trial.should_prune():
                    # Committed with the trial's end: a pruned trial that still runs must not exist after a kill.
                    state = TrialState.PRUNED
                    break
                self._journal.commit()
                self._report({"event": "trial_rung", "trial": trial.number, "rung": rung, "valid_loss": value})
            record |= {"valid_loss": value, "seconds": trainer.progress.seconds, "steps": trainer.progress.step}
            record["score"] = self._score(model) if state is TrialState.COMPLETE else None
        except TrainingError as error:
            state = TrialState.FAIL
            record |= {"failure": str(error), "seconds": 0.0, "steps": 0}
        for key, item in record.items():
            trial.set_user_attr(key, item)
        self._study.tell(trial, None if state is not TrialState.COMPLETE else value, state=state)
        self._journal.commit()
        event = {"event": "trial_finished", "trial": trial.number, "state": state.name.lower(), **record}
        self._report(json.loads(json.dumps(event)))
        self._drop_checkpoints_but_best()

    def _best(self) -> TrialOutcome:
        best = self._best_trial()
        if best is None:
            failures = [trial.user_attrs.get("failure", "") for trial in self._study.get_trials()]
            raise TrainingError(f"no trial finished: {next(filter(None, failures), 'the search had no time for one')}")
        return TrialOutcome(
            best.number,
            self.space.suggest(optuna.trial.FixedTrial(best.params)),
            self.folder / "trials" / f"{best.number:04d}",
            int(best.user_attrs["steps"]),
            float(best.user_attrs["seconds"]),
        )

    def _best_trial(self) -> optuna.trial.FrozenTrial | None:
        """The completed trial of lowest validation loss, or if none completed, the pruned one.

        The first trial, whose parameters are known to hold up over long training, gives way only to one that is
        clearly ahead: early losses favour models that learn fast and end low.
        """
        for state in (TrialState.COMPLETE, TrialState.PRUNED):
            trials = self._study.get_trials(deepcopy=False, states=(state,))
            if trials:
                best = min(trials, key=lambda trial: (trial.user_attrs["valid_loss"], trial.number))
                first = trials[0]
                ahead = best.user_attrs["valid_loss"] < (1 - _CHALLENGE_MARGIN) * first.user_attrs["valid_loss"]
                return first if first.number == 0 and not ahead else best
        return None

    def _drop_checkpoints_but_best(self) -> None:
        """Keep the disk small: only the best trial's weights are needed again."""
        best = self._best_trial()
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished() and (best is None or trial.number != best.number):
                shutil.rmtree(self.folder / "trials" / f"{trial.number:04d}", ignore_errors=True)


def _sampler(seed: int, number: int) -> optuna.samplers.TPESampler:
    """A sampler whose proposal for trial `number` depends on the seed and the trials before it alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=(seed * 10_007 + number) % 2**32, multivariate=True, n_startup_trials=4)


def measure_flops_per_second(
    model: GlmForCausalLM, settings: TrainingSettings, source: ExampleSource, flops_per_token: float, folder: Path
) -> float:
    """How fast this machine trains such a model: among some real steps after two to warm up, a fast one.

    Other work on the machine makes steps slower and never faster, so the 80th percentile of their speeds is nearer to
    what the coming minutes allow than their mean. The model is changed by it; `folder` receives nothing.
    """
    trainer = Trainer(model, settings, source, source.epoch(0), folder)
    marks: list[tuple[float, int]] = []
    trainer.run_steps(_SPEED_STEPS, lambda progress, _: marks.append((progress.seconds, progress.tokens)))
    rates = [(new_tokens - tokens) / (new - old) for (old, tokens), (new, new_tokens) in pairwise(marks[1:])]
    return float(torch.tensor(rates).quantile(0.8)) * flops_per_token
