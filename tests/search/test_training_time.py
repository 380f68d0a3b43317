# SPDX-License-Identifier: Apache-2.0
"""The last training makes room for what follows it when the model's answers come to take longer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from open_autoglm.build_steps import training_time
from open_autoglm.build_steps.training_time import TrainingTime
from open_autoglm.train.trainer import Schedule, Trainer
from tests.train.small import make_trainer

FOUND = {
    "finish_seconds": 10.0,
    "answers": 100,
    "seconds_per_answer": 0.01,
    "trial_seconds": 0.0,
    "plan": {"train_seconds": 90.0},
}
START = 0.5


class Answers:
    """Stands for the workspace: 300 examples, and a clock by which each is answered in as many seconds as said."""

    def __init__(self, seconds: float) -> None:
        self.prepared = SimpleNamespace(valid=[None] * 300)
        self.seconds, self.count, self.clock = seconds, 0, 0.0

    def monotonic(self) -> float:
        return self.clock

    def score(self, model: Any, examples: list[None], **_: Any) -> None:
        del model
        self.count += 1
        self.clock += START + self.seconds * len(examples)


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    trainer = make_trainer(tmp_path)
    trainer.run(Schedule(total_steps=2))
    trainer.progress.seconds = 5.0
    return trainer


@pytest.fixture
def make_time(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(work: Answers, seconds: float | None = 100.0, **found: Any) -> TrainingTime:
        monkeypatch.setattr(training_time, "time", work)
        stand_in: Any = work
        return TrainingTime(stand_in, {**FOUND, **found}, seconds)

    return make


@pytest.mark.parametrize("seconds", [0.1, 0.001])
def test_what_other_answers_need_is_kept_back(trainer: Trainer, make_time: Any, seconds: float) -> None:
    work = Answers(seconds)
    allowed = make_time(work)
    assert allowed.left(trainer, 0.2) == 95.0
    assert work.count == 0
    left = allowed.left(trainer, 0.3)
    assert allowed.finish_seconds == pytest.approx(10.0 + 100 * (seconds - 0.01))
    assert left == pytest.approx(95.0 - work.clock - 100 * (seconds - 0.01))
    for share in (0.4, 0.6, 0.7, 0.8, 0.9, 1.0):
        allowed.left(trainer, share)
    assert work.count == 2 * 3
    assert allowed.finish_seconds == pytest.approx(10.0 + 100 * (seconds - 0.01))


@pytest.mark.parametrize("seconds", [0.008, 0.0125])
def test_answers_that_take_about_as_long_as_known_change_nothing(
    trainer: Trainer, make_time: Any, seconds: float
) -> None:
    work = Answers(seconds)
    allowed = make_time(work)
    assert allowed.left(trainer, 0.5) == pytest.approx(95.0 - work.clock)
    assert work.count == 2
    assert allowed.finish_seconds == pytest.approx(10.0)


def test_a_third_of_the_planned_training_stays(trainer: Trainer, make_time: Any) -> None:
    work = Answers(1.0)
    assert make_time(work, answers=1_000_000).left(trainer, 0.5) == 0.0  # 67 seconds of it went into timing
    work = Answers(0.1)
    assert make_time(work, answers=1_000_000).left(trainer, 0.5) == pytest.approx(30.0 - 5.0 - work.clock)


def test_what_an_older_version_found_is_kept(trainer: Trainer, make_time: Any) -> None:
    allowed = make_time(Answers(0.1))
    del allowed._found["answers"], allowed._found["seconds_per_answer"]
    assert allowed.left(trainer, 0.5) is not None
    assert allowed.finish_seconds == 10.0


def test_a_training_by_steps_looks_at_no_clock(trainer: Trainer, make_time: Any) -> None:
    work = Answers(0.1)
    allowed = make_time(work, None)
    assert allowed.left(trainer, 0.9) is None
    assert work.count == 0
    assert allowed.finish_seconds == 10.0
    assert allowed.segments(1e6) == 12


def test_long_evaluations_are_fewer(trainer: Trainer, make_time: Any) -> None:
    allowed = make_time(Answers(0.1))
    assert [allowed.segments(seconds) for seconds in (0.0, 0.1, 1.0, 1.5, 60.0)] == [12, 12, 8, 5, 4]
    before = trainer.progress.seconds
    trainer.run(Schedule(total_steps=4))
    assert 0 < trainer.evaluation_seconds < trainer.progress.seconds - before
