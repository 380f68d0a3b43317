# SPDX-License-Identifier: Apache-2.0
"""The last training makes room for what follows it when the model's answers come to take longer."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from open_autoglm.build_steps.training_time import TrainingTime
from open_autoglm.train.trainer import Schedule, Trainer
from tests.train.small import make_trainer

FOUND = {
    "finish_seconds": 10.0,
    "answers": 400,
    "seconds_per_answer": 0.0,
    "trial_seconds": 0.0,
    "plan": {"train_seconds": 90.0},
}
PAUSE = 0.08


class Answers:
    """Stands for the workspace: four examples, which are answered in `PAUSE` seconds at least."""

    def __init__(self) -> None:
        self.prepared = SimpleNamespace(valid=[None] * 4)
        self.count = 0

    def score(self, *_: Any, **__: Any) -> None:
        self.count += 1
        time.sleep(PAUSE)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    trainer = make_trainer(tmp_path)
    trainer.run(Schedule(total_steps=2))
    return trainer


def test_answers_are_timed_three_times_and_what_they_need_is_kept_back(trainer: Trainer) -> None:
    work: Any = Answers()
    allowed = TrainingTime(work, FOUND, 100.0)
    spent = trainer.progress.seconds
    assert allowed.left(trainer, 0.2) == 100.0 - spent
    assert work.count == 0
    left = allowed.left(trainer, 0.3)
    assert allowed.finish_seconds >= 10.0 + 400 * PAUSE / 4
    assert left is not None
    assert left <= 100.0 - spent - PAUSE - (allowed.finish_seconds - 10.0)
    for share in (0.4, 0.6, 0.7, 0.8, 0.9, 1.0):
        allowed.left(trainer, share)
    assert work.count == 3


def test_a_third_of_the_planned_training_stays(trainer: Trainer) -> None:
    work: Any = Answers()
    allowed = TrainingTime(work, {**FOUND, "answers": 1_000_000}, 100.0)
    left = allowed.left(trainer, 0.5)
    assert left is not None
    assert 30.0 - trainer.progress.seconds - 10 < left <= 30.0 - PAUSE


def test_a_training_by_steps_looks_at_no_clock(trainer: Trainer) -> None:
    work: Any = Answers()
    allowed = TrainingTime(work, FOUND, None)
    assert allowed.left(trainer, 0.9) is None
    assert work.count == 0
    assert allowed.finish_seconds == 10.0
    assert allowed.segments(1e6) == 12


def test_long_evaluations_are_fewer(trainer: Trainer) -> None:
    work: Any = Answers()
    allowed = TrainingTime(work, FOUND, 100.0)
    assert [allowed.segments(seconds) for seconds in (0.0, 0.1, 1.0, 1.5, 60.0)] == [12, 12, 8, 5, 4]
    trainer.run(Schedule(total_steps=4))
    assert 0 < trainer.evaluation_seconds < trainer.progress.seconds
