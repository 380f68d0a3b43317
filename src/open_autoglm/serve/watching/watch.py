# SPDX-License-Identifier: Apache-2.0
"""`Watch`: the one place that is told of each request, and tells the log, the metrics, the traces and the checks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.exposition import choose_encoder

from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.watching.answer_checks import AnswerChecks
from open_autoglm.serve.watching.request_log import RequestLog
from open_autoglm.serve.watching.request_metrics import PREFIX, RequestMetrics
from open_autoglm.serve.watching.request_record import RequestRecord
from open_autoglm.serve.watching.state_metrics import StateCollector
from open_autoglm.serve.watching.watch_settings import WatchSettings
from open_autoglm.version import __version__

if TYPE_CHECKING:
    from open_autoglm.serve.watching.tracing import RequestTracer

_log = logging.getLogger("open_autoglm.serve")


class Watch:
    """What a server knows of its requests. Used by one event loop.

    checks: of answers. tracer: none where the settings name no collector of traces.
    Raises ConfigurationError if traces are wanted and the packages for them are not installed.
    """

    def __init__(
        self,
        models: Models,
        settings: WatchSettings,
        *,
        checks: AnswerChecks | None = None,
        tracer: RequestTracer | None = None,
    ) -> None:
        self._settings = settings
        # Of a process and a number: nobody need guess or hide an id, and random ones cost more than all the rest of it.
        self._process, self._numbers = secrets.token_hex(8), itertools.count(1)
        self._registry = CollectorRegistry()
        self._checks = checks or AnswerChecks()
        self._metrics = RequestMetrics(self._registry)
        self._request_log = RequestLog(with_content=settings.log_content)
        self._registry.register(StateCollector(models.statuses, self._checks))
        ProcessCollector(registry=self._registry)
        about = Gauge(PREFIX + "build_info", "1, for the version.", ["version"], registry=self._registry)
        about.labels(__version__).set(1)
        self._tracer = tracer
        if tracer is None and settings.otlp_endpoint is not None:
            from open_autoglm.serve.watching.tracing import otlp_tracer

            self._tracer = otlp_tracer(settings.otlp_endpoint, settings.trace_share)

    @property
    def metrics(self) -> RequestMetrics:
        """The counts of requests."""
        return self._metrics

    def begin(
        self, *, protocol: str = "http", method: str, route: str, headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> RequestRecord:
        """A request has come; `end` must follow. route: a template, one of few. headers: names in small letters."""
        settings = self._settings
        self._metrics.begin()
        return RequestRecord(
            protocol=protocol,
            method=method,
            route=route,
            headers=headers,
            own_id=f"{self._process}{next(self._numbers):016x}",
            keeps_content=settings.log_content,
            scored=settings.score_share > 0 and random.random() < settings.score_share,
        )

    def end(self, record: RequestRecord, key_id: str | None = None) -> None:
        """A request has ended, its status noted. key_id: of its caller. Never raises: it is answered already."""
        record.end(key_id)
        try:
            self._metrics.end(record)
            self._checks.take(record)
            trace_id = None if self._tracer is None else self._tracer.export(record)
            self._request_log.write(record, trace_id)
        except Exception:  # noqa: BLE001 - whatever is wrong with us is no fault of the answer
            _log.exception("a request could not be told of")

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """All metrics, and their content type, in the format that an Accept header asks for."""
        encoder, content_type = choose_encoder(accept)
        return await asyncio.to_thread(encoder, self._registry), content_type

    async def close(self) -> None:
        """Send the traces that were not sent yet, for a short time."""
        if self._tracer is not None:
            await self._tracer.close()
