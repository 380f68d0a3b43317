# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_SECONDS: Final = 15.0


class ProgressBar:
    """The progress of one step of work, of `total` units of any kind.

    Use as a context manager; `update` may be called as often as one likes.
    """

    def __init__(self, title: str, total: float) -> None:
        self._title, self._total = title, max(total, 1e-9)
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._next_line = self._started + _LINE_SECONDS
        self._bar: Progress | None = None
        self._task = None
        if self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}", style="dim"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(title, total=self._total, note="")

    def expect(self, total: float) -> None:
        """It will be so many units in all, as is now known better."""
        self._total = max(total, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=self._total)

    def update(self, done: float, note: str = "") -> None:
        """Show that `done` of the total units are done. note: a few words, such as the loss."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=min(done, self._total), note=note)
            return
        now = time.monotonic()
        if now >= self._next_line:
            share = min(1.0, done / self._total)
            left = f", about {(now - self._started) * (1 / share - 1):.0f} s left" if share > 0 else ""
            self.say(f"{self._title}: {share:4.0%} {note}{left}")
            self._next_line = now + _LINE_SECONDS

    def say(self, text: str) -> None:
        """Print a line above the bar, in one piece however long it is."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
