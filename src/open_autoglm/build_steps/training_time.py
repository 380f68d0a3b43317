# SPDX-License-Identifier: Apache-2.0
"""How long the winner's training may take: what the budget leaves, set anew from what answers take by then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from open_autoglm.build_steps.workspace import Workspace
from open_autoglm.search.plan import finish_seconds_again
from open_autoglm.train.trainer import Trainer

_SEGMENTS: Final = (4, 12)
_EVALUATING_SHARE: Final = 0.08
_TIMED_ANSWERS: Final = 64
_TIMED_AT: Final = (0.25, 0.5, 0.75)
"""Shares of the training after which answers are timed: a model that has learnt more may say more, or less."""

_OTHERWISE: Final = 1.3
"""By which factor answers must be slower or faster than the search found them; less is the clock's noise."""


class TrainingTime:
    """The time of one training.

    found: what the search wrote down. seconds: that are left of the budget for this training; None for one by steps,
    which looks at no clock.
    """

    def __init__(self, work: Workspace, found: Mapping[str, Any], seconds: float | None) -> None:
        self._work, self._found, self._seconds = work, found, seconds
        self._timing = 0.0
        self._timed_at = list(_TIMED_AT)
        self.finish_seconds = float(found["finish_seconds"])
        """To keep back for all that follows the training."""

    def segments(self, evaluation_seconds: float) -> int:
        """Into how many parts to cut the training, each with an evaluation at its end, so that these take 8% of it.

        evaluation_seconds: of one; 0 while that is unknown.
        """
        least, most = _SEGMENTS
        if self._seconds is None or not evaluation_seconds:
            return most
        return min(most, max(least, int(_EVALUATING_SHARE * self._seconds / evaluation_seconds)))

    def left(self, trainer: Trainer, share: float) -> float | None:
        """The seconds that are left; None for a training by steps. share: of the steps, how many are done."""
        if self._seconds is None:
            return None
        if self._timed_at and share >= self._timed_at[0]:
            self._timed_at = [one for one in self._timed_at if one > share]
            self._time_answers(trainer)
        spent = trainer.progress.seconds - float(self._found["trial_seconds"])
        return max(0.0, self._seconds - spent - self._timing)

    def _time_answers(self, trainer: Trainer) -> None:
        """Let the model answer a few examples, and keep more or less back if they take otherwise than they did.

        One is answered alone before: what that takes is the engine's start, which scoring many has once.
        """
        assert self._seconds is not None
        examples = self._work.prepared.valid[: _TIMED_ANSWERS + 1]
        took: list[float] = []
        for asked in (examples[:1], examples):
            started = time.monotonic()
            with trainer.better_weights():
                self._work.score(trainer.model, asked, with_intervals=False)
            took.append(time.monotonic() - started)
        self._timing += sum(took)
        each = max(0.0, took[1] - took[0]) / max(1, len(examples) - 1)
        known = self._found.get("seconds_per_answer", 0.0)
        if known / _OTHERWISE <= each <= known * _OTHERWISE:
            each = known
        before, self.finish_seconds = self.finish_seconds, finish_seconds_again(self._found, each)
        least = min(self._seconds, float(self._found["plan"]["train_seconds"]) / 3)
        self._seconds = max(least, self._seconds + before - self.finish_seconds)
