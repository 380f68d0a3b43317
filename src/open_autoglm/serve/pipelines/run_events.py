# SPDX-License-Identifier: Apache-2.0
"""`GET /v1/runs/RUN/events`: how a run goes on, as server-sent events: changes of state, lines of logs, its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from open_autoglm.errors import OpenAutoGLMError, RequestError
from open_autoglm.pipeline.journal_records import ENDED, RunRecord
from open_autoglm.pipeline.run_logs import LogLines, RunLogs
from open_autoglm.serve.error_shape import HttpError, error_body
from open_autoglm.serve.pipelines.pipeline_desk import PipelineDesk
from open_autoglm.serve.pipelines.pipeline_requests import EventsQuery
from open_autoglm.serve.pipelines.pipeline_routes import query_of, run_id_of
from open_autoglm.serve.pipelines.run_shapes import change_shape, log_shape, run_shape
from open_autoglm.serve.routes.answering import STREAM_END, EventStream, event

_LOOK_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 15.0
_MOST_CHANGES: Final = 1000
_MOST_STREAMS: Final = 100


@dataclass(frozen=True)
class _Look:
    """What has happened since the look before."""

    run: RunRecord
    changes: list[dict[str, Any]]
    logs: list[LogLines]
    is_over: bool


class RunEvents:
    """The route. Every stream looks at the journal twice a second, so there are a hundred at most."""

    def __init__(self, desk: PipelineDesk) -> None:
        self._desk = desk
        self._open = 0

    async def stream(self, request: Request) -> Response:
        """All that has happened after `after` (or the header Last-Event-ID), then what happens, until the run ends."""
        after = query_of(request, EventsQuery).after
        last = request.headers.get("last-event-id")
        if last is not None:
            if not (last.isascii() and last.isdigit() and len(last) < 10):
                raise RequestError("the header Last-Event-ID must be an event's id", "Last-Event-ID")
            after = int(last)
        run_id = run_id_of(request)
        await self._desk.do(lambda: self._desk.run(run_id))  # its absence has a status of its own
        if self._open >= _MOST_STREAMS:
            raise HttpError(429, f"{_MOST_STREAMS} streams of events are open, the most that there may be")
        return EventStream(self._events(run_id, after))

    async def _events(self, run_id: str, after: int) -> AsyncGenerator[bytes, None]:
        self._open += 1
        try:
            logs: RunLogs | None = None
            shown: dict[str, Any] = {}
            silent = 0.0
            while True:
                look, logs = await self._desk.do(lambda at=after, known=logs: self._look(run_id, at, known))
                data = b""
                for change in look.changes:
                    after = change["id"]
                    data += b"id: %d\n%b" % (after, event(change_shape(look.run, change)))
                for log in look.logs:
                    data += event({"type": "log", "stage": log.stage, **log_shape(log)})
                if (summary := run_shape(look.run)) != shown:
                    shown = summary
                    data += event({"type": "run", "run": summary})
                silent = 0.0 if data else silent + _LOOK_SECONDS
                if silent >= _SILENCE_SECONDS:
                    silent, data = 0.0, b": nothing new\n\n"  # or what lies between takes the connection for dead
                if data:
                    yield data
                if look.is_over:
                    yield STREAM_END
                    return
                if len(look.changes) < _MOST_CHANGES:
                    await asyncio.sleep(_LOOK_SECONDS)
        except OpenAutoGLMError as error:  # the status is long sent
            yield event(error_body(error)[1])
        finally:
            self._open -= 1

    def _look(self, run_id: str, after: int, logs: RunLogs | None) -> tuple[_Look, RunLogs]:
        """Blocks. The run is read first: what follows belongs to its state at least."""
        run = self._desk.run(run_id)
        changes = self._desk.journal.transitions(run_id, after, _MOST_CHANGES)
        logs = self._desk.logs(run) if logs is None else logs
        is_over = run.state in ENDED and len(changes) < _MOST_CHANGES
        return _Look(run, changes, logs.follow(), is_over), logs
