# SPDX-License-Identifier: Apache-2.0
"""A killed search ends as one that was not, and which trial goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from open_autoglm.errors import TrainingError
from open_autoglm.search.executors import InlineExecutor
from open_autoglm.search.journal import CommittedJournal
from open_autoglm.search.parameters import ParameterSpace, categorical
from open_autoglm.search.plan import RUNGS, Plan, plan_by_steps, training_flops
from open_autoglm.search.space import SearchSpace
from open_autoglm.search.trial import JUDGED, Rung, TrialOrder, TrialRecord, value_of
from open_autoglm.search.tuner import Tuner
from tests.search.trial_benches import Quiet, TinyBench, small_space


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def run_search(
    folder: Path, kill_at: Callable[[int], bool], trials: int = 6
) -> tuple[list[dict[str, Any]], Any, Quiet]:
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if kill_at(calls):
            raise KilledError

    watcher = Quiet(count)
    tuner = Tuner(
        folder, small_space(), plan_by_steps(40, trials), InlineExecutor(TinyBench()), mean_length=8.0, watcher=watcher
    )
    outcome = tuner.run()
    rows = [{"name": e.name, "state": e.state, "loss": e.valid_loss, "choices": e.choices} for e in tuner.entries()]
    return rows, outcome, watcher


def test_a_search_killed_again_and_again_equals_one_that_was_not(tmp_path: Path) -> None:
    whole, best, _ = run_search(tmp_path / "whole", lambda _: False)
    assert [row["name"] for row in whole] == [f"trial {number}" for number in range(6)]
    assert whole[0]["choices"] == small_space().defaults
    assert len({json.dumps(row["choices"]) for row in whole}) > 3
    generator = np.random.default_rng(4)
    kills = 0
    while True:
        fatal = int(generator.integers(3, 16))
        try:
            pieces, best_of_pieces, _ = run_search(tmp_path / "pieces", lambda call, fatal=fatal: call == fatal)
            break
        except KilledError:
            kills += 1
    assert kills >= 3
    assert json.dumps(pieces) == json.dumps(whole)
    assert best_of_pieces.number == best.number
    kept = [path.name for path in (tmp_path / "pieces" / "trials").iterdir()]
    assert kept == [f"{best.number:04d}"]


def test_what_was_not_committed_is_cut_off(tmp_path: Path) -> None:
    journal = CommittedJournal(tmp_path)
    study = optuna.create_study(study_name="s", storage=journal.storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    journal.commit()
    study.add_trial(optuna.trial.create_trial(value=2.0))
    with next(tmp_path.glob("*.journal")).open("ab") as file:
        file.write(b'{"torn": ')
    again = optuna.load_study(study_name="s", storage=CommittedJournal(tmp_path).storage)
    assert [trial.value for trial in again.get_trials()] == [1.0]


class TableExecutor:
    """Gives each trial the curve that is written for its number. ended: the rung after which each ended."""

    capacity = 1

    def __init__(self, curves: list[float]) -> None:
        self._curves, self._order = curves, None
        self.ended: dict[int, int] = {}

    def submit(self, order: TrialOrder) -> None:
        self._order = order

    def wait(self, listener: Any, timeout: float | None = None) -> None:
        order, self._order = self._order, None
        if order is None:
            return
        floor = self._curves[order.number]
        for number in JUDGED:
            points = [(float(at), float(at), floor + 1 / at) for at in range(1, number + 1)]
            loss = points[-1][2]
            self.ended[order.number] = number
            if not listener.decide(Rung(order.number, number, loss, 0, loss, None, 1.0, number, points)):
                return
        listener.finish(TrialRecord(order.number, "complete", loss, 0, loss, seconds=1.0, steps=RUNGS, curve=points))

    def close(self) -> None: ...


def test_a_search_begun_with_other_choices_is_not_gone_on_with(tmp_path: Path) -> None:
    space = small_space()
    others = ParameterSpace((*space.parameters.parameters[:2], categorical("tokens_per_batch", (64, 256))))

    def tuner(space: SearchSpace, trials: int) -> Tuner:
        executor = InlineExecutor(TinyBench())
        return Tuner(tmp_path, space, plan_by_steps(40, trials), executor, mean_length=8.0, watcher=Quiet(int))

    tuner(space, 1).run()
    with pytest.raises(TrainingError, match=r"chose among other values .*begin a run with another name"):
        tuner(replace(space, parameters=others), 3).run()
    tuner(space, 3).run()


def test_a_trial_near_the_first_that_is_no_better_after_a_third_ends_there(tmp_path: Path) -> None:
    executor = TableExecutor([2.0, 2.01, 1.5, 2.0])
    tuner = Tuner(tmp_path, small_space(), plan_by_steps(40, 4), executor, mean_length=8.0, watcher=Quiet(int))
    assert tuner.run().number == 2
    assert executor.ended == {0: 9, 1: 3, 2: 9, 3: 3}
    states = {entry.name: entry.state for entry in tuner.entries()}
    assert states == {"trial 0": "complete", "trial 1": "pruned", "trial 2": "complete", "trial 3": "pruned"}


def test_under_a_budget_the_first_trial_runs_alone_with_all_threads(tmp_path: Path) -> None:
    class Noting(TableExecutor):
        """Takes two trials at a time, and runs the one that came first when it is waited for."""

        capacity = 2

        def __init__(self, curves: list[float]) -> None:
            super().__init__(curves)
            self.orders: list[TrialOrder] = []
            self.beside: dict[int, int] = {}
            self.threads: dict[int, int | None] = {}

        def submit(self, order: TrialOrder) -> None:
            self.beside[order.number] = len(self.orders)
            self.threads[order.number] = order.threads
            self.orders.append(order)

        def wait(self, listener: Any, timeout: float | None = None) -> None:
            super().submit(self.orders.pop(0))
            super().wait(listener)

    executor = Noting([2.0] * 4)
    flops = 40 * 64 * training_flops(small_space().candidate(small_space().defaults).config, 8.0)
    plan = Plan(4, flops, None, 100.0, 500.0, None, threads=2, parallel=2, trial_threads=1)
    Tuner(tmp_path, small_space(), plan, executor, mean_length=8.0, watcher=Quiet(int)).run()
    assert executor.beside == {0: 0, 1: 0, 2: 1, 3: 1}
    assert executor.threads == {0: 2, 1: 1, 2: 1, 3: 1}
    assert executor.ended == {0: 9, 1: 3, 2: 3, 3: 3}


def test_the_metric_decides_and_the_loss_within_its_noise() -> None:
    def value(loss: float, score: float | None) -> float:
        return value_of(loss, score, 100, higher_is_better=True)

    assert value(5.0, 0.6) < value(1.0, 0.4)  # four standard errors ahead, whatever the loss
    assert value(1.0, 0.0) < value(9.0, 0.0)  # early on all metrics are zero
    assert value(0.5, 0.50) < value(9.0, 0.51)  # one percent of a hundred is noise
    assert value_of(3.0, 40.0, 100, higher_is_better=False) == 3.0
    assert value(float("nan"), None) > 1e6
