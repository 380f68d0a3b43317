# SPDX-License-Identifier: Apache-2.0
"""What answers about pipelines look like, as JSON schemas for our OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from open_autoglm.serve.routes.openapi_schemas import (
    COUNT,
    FLAG,
    TEXT,
    list_schema,
    object_schema,
    or_null,
    ref_schema,
)

_Schema = dict[str, Any]

_WORKERS: Final[dict[str, _Schema]] = {
    "workers": {**COUNT, "description": "How many workers are alive."},
    "note": or_null({**TEXT, "description": "What to do if none is."}),
}
_TIME: Final[_Schema] = {"type": "string", "format": "date-time"}
_STATE: Final[_Schema] = {
    "enum": ["waiting", "running", "done", "failed", "cancelled", "paused", "pausing", "cancelling"]
}
_STAGE_STATE: Final[_Schema] = {"enum": ["waiting", "running", "retried", "done", "failed", "cancelled"]}
_INTEGER: Final[_Schema] = {"type": "integer"}
_GRAPH: Final[dict[str, _Schema]] = {"stage": TEXT, "module": TEXT, "needs": list_schema(TEXT), "layer": COUNT}
_RUN: Final[dict[str, _Schema]] = {
    "id": TEXT,
    "object": {"const": "run"},
    "pipeline": TEXT,
    "state": _STATE,
    "reason": or_null(TEXT),
    "priority": _INTEGER,
    "created": _TIME,
    "updated": _TIME,
    "worker": or_null(TEXT),
}
_LOG: Final[dict[str, _Schema]] = {"number": COUNT, "attempt": COUNT, "lines": list_schema(TEXT)}


def _page(name: str, more: dict[str, _Schema] | None = None) -> _Schema:
    return object_schema(
        {"object": {"const": "list"}, "data": list_schema(ref_schema(name)), **(more or {}), **_WORKERS}
    )


PIPELINE_RESPONSES: Final[dict[str, _Schema]] = {
    "Pipeline": object_schema(
        {
            "id": TEXT,
            "object": {"const": "pipeline"},
            "file": TEXT,
            "valid": FLAG,
            "faults": list_schema({**TEXT, "description": "With the file's line and column."}),
            "name": or_null(TEXT),
            "priority": or_null(_INTEGER),
            "concurrency": or_null(COUNT),
            "trigger": or_null(
                object_schema(
                    {
                        "kind": {"enum": ["manual", "cron", "file", "webhook", "queue", "after"]},
                        "value": or_null(TEXT),
                        "timezone": or_null(TEXT),
                    }
                )
            ),
            "stages": list_schema(object_schema(_GRAPH)),
        },
        description="A file of the folder; its stages are empty while it has faults.",
    ),
    "Pipelines": _page("Pipeline"),
    "Run": object_schema(_RUN),
    "Runs": _page("Run", {"has_more": FLAG, "after": or_null(TEXT)}),
    "StartedRun": object_schema({**_RUN, "new": FLAG, **_WORKERS}),
    "ChangedRun": object_schema({**_RUN, **_WORKERS}),
    "RunDetails": object_schema(
        {
            **_RUN,
            "trace_id": TEXT,
            "last_event": {**COUNT, "description": "Events after this one tell what is not in here."},
            "payload": or_null({"type": "object"}),
            "payload_bytes": {**COUNT, "description": "Of what came out; more than 262144 are not sent."},
            "stages": list_schema(
                object_schema(
                    {
                        **_GRAPH,
                        "state": _STAGE_STATE,
                        "items": {"type": "object", "additionalProperties": COUNT},
                        "attempts": COUNT,
                        "started": or_null(_TIME),
                        "ended": or_null(_TIME),
                        "failures": list_schema(
                            object_schema({"number": COUNT, "attempt": COUNT, "state": TEXT, "message": TEXT})
                        ),
                        "log": or_null(object_schema(_LOG)),
                    }
                )
            ),
            **_WORKERS,
        }
    ),
    "RunEvent": {
        "type": "string",
        "description": "Events, each JSON: a `change` of state, lines of a `log`, or the `run` itself; then `[DONE]`.",
    },
    "Schedule": object_schema(
        {
            "pipeline": TEXT,
            "cron": or_null(TEXT),
            "after": or_null(TEXT),
            "timezone": TEXT,
            "missed": {"enum": ["once", "all", "skip"]},
            "paused": FLAG,
            "next": or_null(TEXT),
        }
    ),
    "Schedules": _page("Schedule"),
    "WebhookRun": object_schema({"id": TEXT, "object": {"const": "run"}, "new": FLAG, **_WORKERS}),
}
"""Name -> schema of what the routes answer."""
