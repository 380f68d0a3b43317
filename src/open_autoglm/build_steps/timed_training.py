# SPDX-License-Identifier: Apache-2.0
"""A training that ends when its time is over: in segments, after each of which the end is set anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.progress import ProgressBar
from open_autoglm.storage import read_json, write_json
from open_autoglm.train.trainer import Schedule, Trainer

_SEGMENTS: Final = 12
_LEAST_STEPS: Final = 20


@dataclass(frozen=True)
class Course:
    """How far a training goes.

    total_steps: its last step; None to end by time. seconds: for what is left of it, or None. start, start_seconds:
    what was trained before, as a trial. seconds_per_step: what is expected.
    """

    total_steps: int | None
    seconds: float | None
    start: int = 0
    start_seconds: float = 0.0
    seconds_per_step: float = 1.0

    def first_total(self) -> int:
        """The last step, as far as it is known before the first."""
        if self.total_steps is not None:
            return max(self.total_steps, self.start + 1)
        return self.start + max(_LEAST_STEPS, round((self.seconds or 0.0) / self.seconds_per_step))


def train_to_the_end(trainer: Trainer, course: Course, name: str, emit: Callable[[dict[str, Any]], Any]) -> None:
    """Train while the learning rate falls. By time, the end is set anew from the speed so far, and written down.

    name: of what is trained, for people. emit: takes each evaluation and each restart as an event.
    """
    path, start = trainer.folder / "schedule.json", course.start
    total = int(read_json(path)["total_steps"]) if path.exists() else course.first_total()
    known_restarts = len(trainer.progress.restarts)
    with ProgressBar(name, total - start) as bar:
        while trainer.progress.step < total:
            write_json(path, {"total_steps": total, "decay_from": start})
            segment = max(1, (total - start) // _SEGMENTS)
            trainer.run(
                Schedule(total_steps=total, decay_from=start),
                lambda progress, loss: bar.update(progress.step - start, f"step {progress.step}, loss {loss:.3f}"),
                until=trainer.progress.step + segment,
            )
            for restart in trainer.progress.restarts[known_restarts:]:
                emit({"event": "training_restarted", **restart})
                bar.say(
                    f"{name}: {restart['reason']} at step {restart['failed_step']}; went on from step "
                    f"{restart['continued_from']} with {restart['rate_scale']:.3g} of the learning rate"
                )
            known_restarts = len(trainer.progress.restarts)
            emit({"event": "evaluated", **trainer.progress.curve[-1]})
            spent = trainer.progress.seconds - course.start_seconds
            done = trainer.progress.step - start
            if course.seconds is not None and done and spent > 0:
                left = max(0.0, course.seconds - spent)
                total = trainer.progress.step + round(left * done / spent)
                bar.expect(total - start)
    write_json(path, {"total_steps": trainer.progress.step, "decay_from": start})
