# SPDX-License-Identifier: Apache-2.0
"""`/v1/pipelines`, `/v1/runs`, `/v1/schedules`: what there is, and asking for runs to be started, ended, done again."""

from __future__ import annotations

import datetime
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from open_autoglm.errors import PipelineError, RequestError, SpecificationError
from open_autoglm.pipeline.file_schema import PRIORITIES
from open_autoglm.pipeline.journal_records import RunRecord
from open_autoglm.pipeline.run_requests import ask, retry
from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook
from open_autoglm.serve.error_shape import HttpError
from open_autoglm.serve.json_body import json_object, read_body
from open_autoglm.serve.pipelines.pipeline_desk import PipelineDesk
from open_autoglm.serve.pipelines.pipeline_requests import (
    RUN_PATTERN,
    CheckRequest,
    Nothing,
    RetryRequest,
    RunQuery,
    RunsQuery,
    StartRequest,
)
from open_autoglm.serve.pipelines.run_shapes import pipeline_shape, run_details, run_shape
from open_autoglm.serve.routes.request_model import RequestModel

_RUN: Final = re.compile(RUN_PATTERN)
_Model = TypeVar("_Model", bound=RequestModel)
_Handler = Callable[[Request], Awaitable[Response]]


class PipelineRoutes:
    """The routes' parts: the desk and the most bytes of a body."""

    def __init__(self, desk: PipelineDesk, max_body: int) -> None:
        self._desk, self._max_body = desk, max_body

    def add_to(self, app: Starlette) -> None:
        """Add the routes to an application."""
        routes: tuple[tuple[str, str, _Handler], ...] = (
            ("GET", "/v1/pipelines", self.list_pipelines),
            ("GET", "/v1/pipelines/{pipeline}", self.get_pipeline),
            ("POST", "/v1/pipelines/{pipeline}/validate", self.validate),
            ("POST", "/v1/pipelines/{pipeline}/runs", self.start),
            ("GET", "/v1/runs", self.list_runs),
            ("GET", "/v1/runs/{run}", self.get_run),
            ("POST", "/v1/runs/{run}/cancel", self._asking("cancel")),
            ("POST", "/v1/runs/{run}/pause", self._asking("pause")),
            ("POST", "/v1/runs/{run}/resume", self._asking("")),
            ("POST", "/v1/runs/{run}/retry", self.retry),
            ("GET", "/v1/schedules", self.list_schedules),
            ("POST", "/v1/schedules/{pipeline}/pause", self._pausing(paused=True)),
            ("POST", "/v1/schedules/{pipeline}/resume", self._pausing(paused=False)),
        )
        for method, path, handler in routes:
            app.add_route(path, handler, methods=[method])

    async def list_pipelines(self, request: Request) -> Response:
        """Every file of the folder, wrong ones with their faults."""
        query_of(request, Nothing)

        def work() -> dict[str, Any]:
            found = [pipeline_shape(one) for one in self._desk.files.files()]
            return {"object": "list", "data": found, **self._desk.who_works()}

        return JSONResponse(await self._desk.do(work))

    async def get_pipeline(self, request: Request) -> Response:
        """One of them."""
        query_of(request, Nothing)
        name = request.path_params["pipeline"]
        return JSONResponse(await self._desk.do(lambda: pipeline_shape(self._desk.pipeline(name))))

    async def validate(self, request: Request) -> Response:
        """Check a file, with settings, and run nothing."""
        query_of(request, Nothing)
        asked = await self._body(request, CheckRequest)
        name = request.path_params["pipeline"]
        return JSONResponse(await self._desk.do(lambda: pipeline_shape(self._desk.pipeline(name, asked.settings))))

    async def start(self, request: Request) -> Response:
        """Have a run started; 202, for a worker does it."""
        query_of(request, Nothing)
        asked = await self._body(request, StartRequest)
        name = request.path_params["pipeline"]

        def work() -> dict[str, Any]:
            found = self._desk.pipeline(name, asked.settings)
            if found.content is None:
                raise SpecificationError("\n".join(found.faults), found.faults)
            run_id, is_new = self._desk.journal.submit(
                found.content,
                None,
                folder=str(self._desk.folder),
                key=None if asked.key is None else f"request/{found.content['name']}/{asked.key}",
                priority=None if asked.priority is None else PRIORITIES[asked.priority],
                payload=asked.payload,
            )
            return {**run_shape(self._desk.run(run_id)), "new": is_new, **self._desk.who_works()}

        return JSONResponse(await self._desk.do(work), 202)

    async def list_runs(self, request: Request) -> Response:
        """A page of runs, the newest first."""
        asked = query_of(request, RunsQuery)

        def work() -> dict[str, Any]:
            try:
                found = self._desk.journal.list(asked.pipeline, asked.state, asked.limit + 1, asked.after)
            except PipelineError as error:
                raise RequestError(f"after: {error}", "after") from None
            page = found[: asked.limit]
            more = len(found) > len(page)
            return {
                "object": "list",
                "data": [run_shape(run) for run in page],
                "has_more": more,
                "after": page[-1].run_id if more else None,
                **self._desk.who_works(),
            }

        return JSONResponse(await self._desk.do(work))

    async def get_run(self, request: Request) -> Response:
        """A run with its stages, their times, attempts, errors and last lines."""
        asked = query_of(request, RunQuery)
        run_id = run_id_of(request)

        def work() -> dict[str, Any]:
            run = self._desk.run(run_id)
            logs = self._desk.logs(run).tails(asked.lines)
            return {**run_details(self._desk.journal, run, logs), **self._desk.who_works()}

        return JSONResponse(await self._desk.do(work))

    async def retry(self, request: Request) -> Response:
        """Have a run that has ended run again."""
        query_of(request, Nothing)
        asked = await self._body(request, RetryRequest)

        def change(run: RunRecord) -> RunRecord:
            if asked.from_stage is not None:
                try:
                    run.specification.stage(asked.from_stage)
                except PipelineError as error:
                    raise RequestError(str(error), "from") from None
            return retry(self._desk.journal, run.run_id, asked.from_stage)

        return await self._changed(request, change)

    def _asking(self, control: str) -> _Handler:
        async def handler(request: Request) -> Response:
            query_of(request, Nothing)
            await self._body(request, Nothing)
            return await self._changed(request, lambda run: ask(self._desk.journal, run.run_id, control))

        return handler

    async def _changed(self, request: Request, change: Callable[[RunRecord], RunRecord]) -> Response:
        run_id = run_id_of(request)

        def work() -> dict[str, Any]:
            run = self._desk.run(run_id)
            try:
                return {**run_shape(change(run)), **self._desk.who_works()}
            except PipelineError as error:
                raise HttpError(409, str(error), code="wrong_state") from None

        return JSONResponse(await self._desk.do(work))

    async def list_schedules(self, request: Request) -> Response:
        """What starts by itself, and when next."""
        query_of(request, Nothing)

        def work() -> dict[str, Any]:
            now = datetime.datetime.now(datetime.UTC)
            found = [one.summary(now) for one in ScheduleBook(self._desk.journal).list()]
            return {"object": "list", "data": found, **self._desk.who_works()}

        return JSONResponse(await self._desk.do(work))

    def _pausing(self, *, paused: bool) -> _Handler:
        async def handler(request: Request) -> Response:
            query_of(request, Nothing)
            await self._body(request, Nothing)
            name = request.path_params["pipeline"]

            def work() -> dict[str, Any]:
                book = ScheduleBook(self._desk.journal)
                known = {one.pipeline for one in book.list()}
                if name not in known:
                    raise HttpError(404, f"there is no schedule {name[:100]!r}", "pipeline")
                book.pause(name, paused=paused)
                now = datetime.datetime.now(datetime.UTC)
                return next(one.summary(now) for one in book.list() if one.pipeline == name)

            return JSONResponse(await self._desk.do(work))

        return handler

    async def _body(self, request: Request, model: type[_Model]) -> _Model:
        """The body; none at all is one without fields."""
        body = await read_body(request, self._max_body)
        return model.parse(json_object(body) if body else {})


def query_of(request: Request, model: type[_Model]) -> _Model:
    """The query, each name known and given once. Raises RequestError."""
    given = request.query_params.multi_items()
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"{name[:64]} is given twice", name[:64])
    return model.parse(dict(given))


def run_id_of(request: Request) -> str:
    """The run that the path names. Raises HttpError 404 for what cannot be one."""
    run_id: str = request.path_params["run"]
    if not _RUN.fullmatch(run_id):
        raise HttpError(404, f"there is no run {run_id[:100]!r}", "run")
    return run_id
