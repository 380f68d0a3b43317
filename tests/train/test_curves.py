# SPDX-License-Identifier: Apache-2.0
"""Curves are the same as JSON lines and as TensorBoard reads them, also over a kill."""

import json
from pathlib import Path
from typing import Any

import pytest

from open_autoglm.errors import StorageError
from open_autoglm.train.checkpoint import Progress
from open_autoglm.train.curves import CURVE_FILE, EVENTS_FOLDER, CurveWriter, read_curve
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer
from tests.train.small import make_examples, make_model


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars by tag and step, as TensorBoard's own reader gives them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def make_trainer(folder: Path) -> Trainer:
    examples = make_examples()
    settings = TrainingSettings(tokens_per_batch=120, warmup_steps=5, dropout=0.0, ema_decay=0.9)
    return Trainer(make_model(), settings, FixedExamples(examples), examples, folder, events=True)


def by_tag(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "event"):
                found.setdefault(name, {})[row["step"]] = value
    return found


def test_a_killed_run_has_one_curve_without_doubles(tmp_path: Path) -> None:
    schedule = Schedule(total_steps=50, decay_from=25, evaluate_every=20, checkpoint_every=20)

    def killed(progress: Progress, _: float) -> None:
        if progress.step == 36:
            raise KeyboardInterrupt

    first = make_trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.run(schedule, killed)
    first.curves.flush()  # what a kill may leave behind: rows of steps that are taken again
    with (tmp_path / CURVE_FILE).open("a") as file:
        file.write('{"step": 40, "lo')
    again = make_trainer(tmp_path)
    again.run(schedule)
    again.record({"valid_exact_match": 0.5})
    again.curves.close()
    rows = read_curve(tmp_path / CURVE_FILE)
    assert [row["step"] for row in rows if "loss" in row] == [10, 20, 30, 40, 50]
    assert [row["step"] for row in rows if "valid_loss" in row] == [20, 40, 50]
    assert rows[-1] == {"step": 50, "valid_exact_match": 0.5}
    values = by_tag(rows)
    assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "average_valid_loss"} <= set(values)
    events = read_events(tmp_path / EVENTS_FOLDER)
    assert events.keys() == values.keys()
    for tag, points in values.items():
        assert events[tag] == pytest.approx(points, rel=1e-6), tag


def test_curve_rows_are_json_without_infinities(tmp_path: Path) -> None:
    writer = CurveWriter(tmp_path, 0)
    writer.write(1, {"loss": float("inf")})
    writer.note(1, "restarted", {"reason": "损失"})
    writer.close()
    assert [json.loads(line) for line in (tmp_path / CURVE_FILE).read_text().splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 1, "event": "restarted", "reason": "损失"},
    ]
    assert not (tmp_path / EVENTS_FOLDER).exists()


def test_a_curve_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / CURVE_FILE).write_text("hello\n{}\n")
    with pytest.raises(StorageError, match=r"curve\.jsonl: line 1 "):
        read_curve(tmp_path / CURVE_FILE)
