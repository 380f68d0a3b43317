# SPDX-License-Identifier: Apache-2.0
"""How runs are shown, in commands and over HTTP: their states in words, their times, their stages."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from open_autoglm.pipeline.journal_records import ENDED, ItemRecord, JournalReader, RunRecord


def run_summary(run: RunRecord) -> dict[str, Any]:
    """A run as JSON."""
    return {
        "run": run.run_id,
        "pipeline": run.pipeline,
        "state": shown_state(run),
        "reason": run.reason,
        "priority": run.priority,
        "created": shown_time(run.created),
        "updated": shown_time(run.updated),
        "worker": run.owner,
        "folder": run.folder,
    }


def shown_state(run: RunRecord) -> str:
    """The state, and what was asked for beside it."""
    if run.control == "pause":
        return "paused" if run.owner is None else "pausing"
    return "cancelling" if run.control == "cancel" else run.state


def shown_time(seconds: float | None) -> str | None:
    """Seconds since 1970 as ISO 8601 in UTC."""
    if seconds is None:
        return None
    return (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def rests(run: RunRecord) -> bool:
    """Whether nothing happens in a run any more unless somebody asks for it: it has ended, or is paused."""
    return run.state in ENDED or (run.control == "pause" and run.owner is None)


def items_by_stage(journal: JournalReader, run: RunRecord) -> dict[str, list[ItemRecord]]:
    """The items of each stage, in the stages' order, without what they gave."""
    stages: dict[str, list[ItemRecord]] = {stage.stage: [] for stage in run.specification.order}
    for key, item in journal.items(run.run_id, with_output=False).items():
        stages.setdefault(key.stage, []).append(item)
    return stages


def stage_state(items: Sequence[ItemRecord]) -> str:
    """The state of a stage, from those of its items."""
    states = [item.state for item in items]
    for state in ("failed", "running", "retried", "cancelled"):
        if state in states:
            return state
    return "done" if states and set(states) == {"done"} else "running" if "done" in states else "waiting"
