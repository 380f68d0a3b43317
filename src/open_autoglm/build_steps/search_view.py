# SPDX-License-Identifier: Apache-2.0
"""The search as the user sees it: the plan first, then the trials, the best so far and the time left, live."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from open_autoglm.progress import ProgressBar
from open_autoglm.search.plan import Plan, format_seconds
from open_autoglm.search.trial import Rung, TrialRecord

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SHOWN: Final = 8
_CURVE: Final = 24


def show_plan(plan: Plan, *, budget: float, spent: float, gflops: float) -> None:
    """Say what the budget will be spent on: a table on a terminal, a line elsewhere."""
    search, training = plan.search_seconds or 0.0, plan.train_seconds or 0.0
    at_a_time = f", {plan.parallel} at a time" if plan.parallel > 1 else ""
    rows = [
        ("data, baselines, measuring", spent, "done"),
        *(
            [("evolution", plan.evolution_seconds, "architectures under the constraint")]
            if plan.evolution_seconds
            else []
        ),
        ("search", search, f"at most {plan.trials} {'trial' if plan.trials == 1 else 'trials'}{at_a_time}"),
        ("training", training, "the best trial goes on while its learning rate falls; gets what the search leaves"),
        ("finish", plan.finish_seconds, "scores, int8, bundle"),
    ]
    console = Console(stderr=True)
    if not console.is_terminal:
        parts = "; ".join(f"{name} {seconds:.0f} s" for name, seconds, _ in rows)
        console.print(
            f"plan for {format_seconds(budget)} at {gflops:.0f} GFLOP/s: {parts} ({rows[-3][2]})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return
    table = Table(title=f"Plan for {format_seconds(budget)} ({gflops:.0f} GFLOP/s here)", title_justify="left")
    for column in ("step", "seconds", "what"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for name, seconds, what in rows:
        table.add_row(name, f"{seconds:.0f}", what)
    console.print(table)


def sparkline(values: Sequence[float]) -> str:
    """A curve in one line of text, the first of many values left out."""
    shown = list(values)[-_CURVE:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[round((value - low) * scale)] for value in shown)


class SearchView:
    """Hears of the trials, shows them, and keeps each event with the run.

    keep: takes each event, a JSON object. metric: the task's.
    """

    def __init__(self, plan: Plan, metric: str, keep: Callable[[dict[str, Any]], None]) -> None:
        self._plan, self._metric, self._keep = plan, metric, keep
        self._started = time.monotonic()
        self._at: dict[int, tuple[int, int]] = {}
        self._rungs: dict[int, list[Rung]] = {}
        self._records: dict[int, TrialRecord] = {}
        self._bar = ProgressBar("search", plan.trials)
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, transient=True, refresh_per_second=2) if self._is_live else None

    @property
    def _is_live(self) -> bool:
        return self._console.is_terminal

    def started(self, trial: int, parameters: dict[str, Any]) -> None:
        """A trial begins."""
        self._at[trial] = (0, 1)
        self._keep({"event": "trial_started", "trial": trial, "parameters": parameters})
        self._refresh()

    def stepped(self, trial: int, step: int, steps: int, seconds: float) -> None:
        """A trial has come so far."""
        del seconds
        self._at[trial] = (step, steps)
        if self._live is None:
            done = len(self._records) + sum(at / of for at, of in self._at.values())
            self._bar.update(done, f"trial {trial + 1} of at most {self._plan.trials}, step {step} of {steps}")
        else:
            self._refresh()

    def judged(self, rung: Rung) -> None:
        """A trial has passed a rung."""
        self._rungs.setdefault(rung.trial, []).append(rung)
        self._keep({"event": "trial_rung", **{key: value for key, value in rung.to_dict().items() if key != "curve"}})
        self._refresh()

    def finished(self, record: TrialRecord) -> None:
        """A trial has ended."""
        self._records[record.trial] = record
        self._at.pop(record.trial, None)
        self._keep({"event": "trial_finished", **record.to_dict()})
        if self._live is None:
            self._bar.say(f"search: {self._told(record)}")
        else:
            self._refresh()

    def __enter__(self) -> SearchView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            for record in self._records.values():
                self._bar.say(f"search: {self._told(record)}")

    def _told(self, record: TrialRecord) -> str:
        return (
            f"trial {record.trial} {record.state}"
            + (f", validation loss {record.valid_loss:.3f}" if record.valid_loss is not None else "")
            + (f", {self._metric} {record.score:.4f}" if record.score is not None else "")
            + f", {record.seconds:.0f} s"
            + (f" ({record.failure})" if record.failure else "")
        )

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._picture())

    def _picture(self) -> Group:
        table = Table(title="Search", title_justify="left")
        for column in ("trial", "state", "loss", self._metric, "curve"):
            table.add_column(column, justify="right" if column in ("loss", self._metric) else "left")
        numbers = sorted({*self._records, *self._at, *self._rungs})[-_SHOWN:]
        for number in numbers:
            record, rungs = self._records.get(number), self._rungs.get(number, [])
            step, steps = self._at.get(number, (0, 1))
            state = record.state if record is not None else f"{step / steps:.0%} of {steps} steps"
            points = record.curve if record is not None else rungs[-1].curve if rungs else []
            loss = points[-1][2] if points else None
            score = record.score if record is not None else rungs[-1].score if rungs else None
            table.add_row(
                str(number),
                state,
                "" if loss is None else f"{loss:.3f}",
                "" if score is None else f"{score:.4f}",
                sparkline([value for _, _, value in points]),
            )
        done = [record for record in self._records.values() if record.state == "complete"]
        best = min(done, key=lambda record: record.value) if done else None
        spent = time.monotonic() - self._started
        left = (
            "" if self._plan.search_seconds is None else f"; {max(0.0, self._plan.search_seconds - spent):.0f} s left"
        )
        told = "no trial has ended yet" if best is None else f"best so far: {self._told(best)}"
        return Group(table, Text(f"{told}; {spent:.0f} s{left}"))
