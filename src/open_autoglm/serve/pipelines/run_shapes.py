# SPDX-License-Identifier: Apache-2.0
"""Pipelines, runs and schedules as the routes answer them: nothing of settings, secrets or the machine's paths."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from open_autoglm.pipeline.drawing import layers
from open_autoglm.pipeline.journal_records import ItemRecord, JournalReader, RunRecord
from open_autoglm.pipeline.pipeline_folder import CheckedFile
from open_autoglm.pipeline.run_logs import LogLines
from open_autoglm.pipeline.run_view import items_by_stage, shown_state, shown_time, stage_state
from open_autoglm.pipeline.specification import PipelineSpecification

_TRIGGERS: Final = ("cron", "file", "webhook", "queue", "after")
_MOST_PAYLOAD: Final = 256 * 1024
_MOST_FAILURES: Final = 20


def pipeline_shape(one: CheckedFile) -> dict[str, Any]:
    """A file of the folder."""
    content = one.content
    return {
        "id": one.name,
        "object": "pipeline",
        "file": one.file,
        "valid": content is not None,
        "faults": list(one.faults),
        "name": None if content is None else content["name"],
        "priority": None if content is None else content["priority"],
        "concurrency": None if content is None else content["concurrency"],
        "trigger": None if content is None else _trigger(content["trigger"]),
        "stages": [] if content is None else graph_shape(_specification(content)),
    }


def _specification(content: Mapping[str, Any]) -> PipelineSpecification:
    return PipelineSpecification.from_dict({"name": content["name"], "stages": content["stages"]})


def _trigger(trigger: Mapping[str, Any]) -> dict[str, Any]:
    """What starts it. The address of a queue is not told: it may have a password."""
    kind = next((name for name in _TRIGGERS if trigger.get(name) is not None), "manual")
    value = None if kind in ("manual", "queue") else trigger[kind]
    return {"kind": kind, "value": value, "timezone": trigger.get("timezone", "UTC") if kind == "cron" else None}


def graph_shape(specification: PipelineSpecification) -> list[dict[str, Any]]:
    """The stages with what each needs. layer: how many others come before it at least."""
    return [
        {
            "stage": stage.stage,
            "module": stage.module,
            "needs": list(specification.needs[stage.stage]),
            "layer": number,
        }
        for number, layer in enumerate(layers(specification))
        for stage in layer
    ]


def run_shape(run: RunRecord) -> dict[str, Any]:
    """A run without its stages."""
    return {
        "id": run.run_id,
        "object": "run",
        "pipeline": run.pipeline,
        "state": shown_state(run),
        "reason": None if run.reason is None else within(run, run.reason),
        "priority": run.priority,
        "created": shown_time(run.created),
        "updated": shown_time(run.updated),
        "worker": run.owner,
    }


def within(run: RunRecord, text: str) -> str:
    """A text of the run's without the place of its folder on this machine."""
    return text.replace(f"{run.folder}/", "")


def run_details(journal: JournalReader, run: RunRecord, logs: Mapping[str, LogLines]) -> dict[str, Any]:
    """A run with its stages and what came of it. logs: by stage."""
    last_event = journal.last_transition(run.run_id)  # before the items: what comes later is told again
    items = items_by_stage(journal, run)
    payload = None if run.result is None else run.result.payload
    size = 0 if payload is None else len(json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace"))
    return {
        **run_shape(run),
        "trace_id": run.trace_id,
        "last_event": last_event,
        "payload": payload if size <= _MOST_PAYLOAD else None,
        "payload_bytes": size,
        "stages": [
            {**stage, **_stage(run, items.get(stage["stage"], []), logs.get(stage["stage"]))}
            for stage in graph_shape(run.specification)
        ],
    }


def _stage(run: RunRecord, items: list[ItemRecord], log: LogLines | None) -> dict[str, Any]:
    started = [item.started for item in items if item.started is not None]
    ended = [item.ended for item in items if item.ended is not None]
    is_over = bool(items) and all(item.state in ("done", "failed", "cancelled") for item in items)
    failed = [item for item in items if item.failure is not None]
    return {
        "state": stage_state(items),
        "items": {"total": len(items), **Counter(item.state for item in items)},
        "attempts": sum(item.attempt for item in items),
        "started": shown_time(min(started, default=None)),
        "ended": shown_time(max(ended, default=None)) if is_over else None,
        "failures": [
            {
                "number": item.key.number,
                "attempt": item.attempt,
                "state": item.state,
                "message": within(run, str((item.failure or {}).get("message", ""))),
            }
            for item in failed[:_MOST_FAILURES]
        ],
        "log": None if log is None else log_shape(log),
    }


def log_shape(log: LogLines) -> dict[str, Any]:
    """Lines of a log."""
    return {"number": log.number, "attempt": log.attempt, "lines": list(log.lines)}


def change_shape(run: RunRecord, change: Mapping[str, Any]) -> dict[str, Any]:
    """A change of state. stage: null for the run's own."""
    return {
        "type": "change",
        "id": change["id"],
        "stage": change["stage"],
        "number": change["number"],
        "state": change["state"],
        "attempt": change["attempt"],
        "time": shown_time(change["time"]),
        "reason": None if change["reason"] is None else within(run, str(change["reason"])),
    }
