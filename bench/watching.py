# SPDX-License-Identifier: Apache-2.0
"""What do logs, metrics and checks of answers cost a server, for each request and for each token?

python bench/watching.py

The web application is called without sockets, with and without what watches it, in turns, over a model that answers at
once from memory, so that nothing else takes time. Processor seconds are those of all threads, the log's included, which
writes JSON lines to /dev/null. Traces are off unless `--traces` sends all of them to an exporter in memory.
Writes bench/results/watching.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from engine import RESULTS
from machine import describe_machine
from open_autoglm.engine.orders import ModelCard, Order, Piece, Question, Reply, Times, Usage
from open_autoglm.engine.stats import EngineStats
from open_autoglm.serve.app import create_app_of
from open_autoglm.serve.models.model_client import OneModel
from open_autoglm.serve.routes import answering
from open_autoglm.serve.settings import ServeSettings
from open_autoglm.serve.watching.log_output import logging_to_stderr
from open_autoglm.serve.watching.watch import Watch
from open_autoglm.serve.watching.watch_gate import WatchGate
from open_autoglm.serve.watching.watch_settings import WatchSettings
from open_autoglm.storage import write_json

_SCHEMA = {"type": "object", "properties": {"intent": {"type": "string"}}, "required": ["intent"]}
_TASK = {"kind": "extraction", "labels": [], "answer_schema": _SCHEMA}


class _Instant:
    """A model whose answer of `tokens` tokens is there at once, one token in each piece."""

    def __init__(self, tokens: int) -> None:
        self.card = ModelCard("m", 4096, 1000, True, 0.0, "none", "none", "digest", _TASK)
        self.state, self.reason, self.is_serving, self.is_ready, self.num_open = "ready", None, True, True, 0
        self.num_restarts = 0
        self.stats = EngineStats(0, 0, 1, 0, 1, 0, 0, 0)
        words = ['{"intent": "', *["x"] * (tokens - 2), '"}']
        now = time.monotonic()
        end = {"finish_reason": "stop", "usage": Usage(20, tokens, 16), "times": Times(now, now, now, now)}
        self._pieces = [Piece(0, word, 1) for word in words[:-1]] + [Piece(0, words[-1], 1, **end)]
        self._whole = [Piece(0, "".join(words), tokens, **end)]

    async def stream(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        del order
        for piece in self._pieces:
            yield [piece]

    async def answer(self, order: Order) -> list[Piece]:
        del order
        return self._whole

    async def ask(self, question: Question) -> Reply:
        raise NotImplementedError(question)

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Nothing to stop."""


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400, help="Of each kind in each round.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=200, help="Of the long stream.")
    parser.add_argument("--traces", action="store_true")
    arguments = parser.parse_args()
    record: dict[str, Any] = {"machine": describe_machine(), "traces": arguments.traces}
    with Path(os.devnull).open("w") as stream, logging_to_stderr(WatchSettings(log_format="json"), stream):
        record |= asyncio.run(_measure(arguments))
    path = RESULTS / "watching.json"
    write_json(path, record)
    print(json.dumps({name: value for name, value in record.items() if name != "machine"}, indent=2))


async def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    kinds = {"whole": (2, False), "short stream": (2, True), "long stream": (arguments.tokens, True)}
    found: dict[str, Any] = {}
    for name, (tokens, streams) in kinds.items():
        apps = {watched: _app(tokens, watched=watched, traces=arguments.traces) for watched in (False, True)}
        added: list[float] = []
        base: list[float] = []
        for _ in range(arguments.rounds):
            seconds = {}
            for watched, app in apps.items():
                answering.watched = _WATCHED if watched else _unwatched  # pyright: ignore[reportAttributeAccessIssue]
                await _ask(app, 20, streams=streams)
                seconds[watched] = await _ask(app, arguments.requests, streams=streams)
            base.append(seconds[False])
            added.append(seconds[True] - seconds[False])
        found[name] = {
            "tokens": tokens,
            "microseconds_without": round(1e6 * statistics.median(base), 1),
            "microseconds_added": round(1e6 * statistics.median(added), 1),
            "added_quartiles": [round(1e6 * item, 1) for item in statistics.quantiles(added, n=4)],
        }
    long, short = found["long stream"], found["short stream"]
    per_token = (long["microseconds_added"] - short["microseconds_added"]) / (long["tokens"] - short["tokens"])
    found["microseconds_added_per_token"] = round(per_token, 2)
    return found


_WATCHED = answering.watched


def _unwatched(models: Any, record: Any) -> Any:
    del record
    return models


def _app(tokens: int, *, watched: bool, traces: bool) -> Starlette:
    models = OneModel(_Instant(tokens), "m", 0)
    app = create_app_of(models, ServeSettings())
    app.user_middleware = [item for item in app.user_middleware if item.cls is not WatchGate]
    if watched:
        watch = Watch(models, WatchSettings(), tracer=_tracer() if traces else None)
        app.add_middleware(WatchGate, watch=watch, routes=lambda: app.routes)
    return app


def _tracer() -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    from open_autoglm.serve.watching.tracing import RequestTracer

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            del spans
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return RequestTracer(provider)


async def _ask(app: Starlette, count: int, *, streams: bool) -> float:
    """Processor seconds of a request, over so many of them, until the log has written their lines."""
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": streams}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"user-agent", b"bench")]
    began = time.process_time()
    for _ in range(count):
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": "/v1/chat/completions", "raw_path": b"/v1/chat/completions", "query_string": b"",
            "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("localhost", 8000), "state": {},
        }  # fmt: skip
        sent = False
        gone = asyncio.Event()
        status: list[int] = []

        async def receive(gone: asyncio.Event = gone) -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any, status: list[int] = status) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])

        await app(scope, receive, send)
        assert status == [200]
    await asyncio.sleep(0.05)
    return (time.process_time() - began) / count


if __name__ == "__main__":
    main()
