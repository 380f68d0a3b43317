# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry spans of a request, made when it has ended from what its record says: nothing is paid before that.

Names and attributes are those of OpenTelemetry's conventions for HTTP and for generative AI; what these have no word
for begins with `open_autoglm.`. Loaded only where traces are sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from open_autoglm.engine.orders import ChatOrder, Times
from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.watching.request_record import ChoiceRecord, RequestRecord
from open_autoglm.version import __version__

PROVIDER: Final = "open_autoglm"
"""Who answers, as `gen_ai.provider.name` says it."""

_SCOPE: Final = "open_autoglm.serve"
_MOST_CHOICES: Final = 8
"""Choices of a request whose phases get spans of their own."""
_CLOSING_SECONDS: Final = 3.0
_PARAMETERS: Final = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


class SpanSink(Protocol):
    """What makes spans and sends them: an SDK's `TracerProvider`."""

    def get_tracer(self, instrumenting_module_name: str, instrumenting_library_version: str | None = None) -> Any:
        """A tracer under a name."""
        ...

    def shutdown(self) -> None:
        """Send what was not sent yet."""
        ...


class RequestTracer:
    """Makes the spans of requests. provider: of OpenTelemetry's SDK, with its exporter and its sampler."""

    def __init__(self, provider: SpanSink) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer(_SCOPE, __version__)
        self._trace, self._propagator = trace, TraceContextTextMapPropagator()

    def export(self, record: RequestRecord) -> str:
        """Make the spans of a request that has ended. Returns the trace's id, also of one that is not sampled."""
        trace = self._trace
        root = self._tracer.start_span(
            f"{record.method} {record.route}".strip(),
            context=self._caller(record),
            kind=trace.SpanKind.SERVER,
            start_time=record.began_ns,
            attributes=_request_attributes(record),
        )
        trace_id = trace.format_trace_id(root.get_span_context().trace_id)
        if root.is_recording():
            if record.error is not None and record.status >= 500:
                root.set_status(trace.StatusCode.ERROR, record.error_message)
            if record.model is not None:
                self._answer(record, trace.set_span_in_context(root))
            root.end(_nanoseconds(record, record.ended))
        return trace_id

    async def close(self) -> None:
        """Send what was not sent yet, for a short time: a collector that is away does not keep the server."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            with contextlib.suppress(Exception):
                self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait for us
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=shut_down, name="open-autoglm-traces", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), _CLOSING_SECONDS)

    def _caller(self, record: RequestRecord) -> Any:
        carrier = {"traceparent": record.trace_parent, "tracestate": record.trace_state}
        return self._propagator.extract({name: value for name, value in carrier.items() if value is not None})

    def _answer(self, record: RequestRecord, context: Any) -> None:
        """The span of the model's work, and those of its phases."""
        times = [choice.times for choice in record.choices.values() if choice.times is not None]
        span = self._tracer.start_span(
            f"{record.operation} {record.model}",
            context=context,
            kind=self._trace.SpanKind.INTERNAL,
            start_time=record.began_ns,
            attributes=_answer_attributes(record),
        )
        if record.error is not None:
            span.set_status(self._trace.StatusCode.ERROR, record.error_message)
        inner = self._trace.set_span_in_context(span)
        for index, choice in record.answers[:_MOST_CHOICES]:
            if choice.times is not None:
                self._phases(record, index, choice, choice.times, inner)
        ended = max((item.last_token for item in times), default=record.ended)
        span.end(_nanoseconds(record, record.ended if record.is_stream else min(ended, record.ended)))

    def _phases(self, record: RequestRecord, index: int, choice: ChoiceRecord, times: Times, context: Any) -> None:
        phases: list[tuple[str, float, float, dict[str, Any]]] = [
            ("prepare", record.began, times.queued, {}),
            ("queue", times.queued, times.scheduled, {}),
            ("prefill", times.scheduled, times.first_token, _prefill_attributes(choice)),
            ("decode", times.first_token, times.last_token, _decode_attributes(choice)),
        ]
        if times.parse_seconds and _may_call(record):
            # Calls are read while they are written, a little at each step; the span is as long as all of that, and
            # stands at its end.
            phases.append(("parse tool calls", times.last_token - times.parse_seconds, times.last_token, {}))
        for name, began, ended, attributes in phases:
            if len(record.choices) > 1:
                attributes["open_autoglm.choice.index"] = index
            span = self._tracer.start_span(
                name, context=context, start_time=_nanoseconds(record, began), attributes=attributes
            )
            span.end(_nanoseconds(record, max(began, ended)))


def otlp_tracer(endpoint: str, share: float) -> RequestTracer:
    """A tracer that sends its spans to a collector. share: of the requests, where the caller did not decide.

    The headers and the time limit of OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_HEADERS, hold.
    Raises ConfigurationError if the packages for it are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise ConfigurationError(
            f"--otlp-endpoint needs OpenTelemetry ({error}): pip install 'open-autoglm[otel]'"
        ) from None
    if urlsplit(endpoint).path in ("", "/"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    about: Mapping[str, Any] = {"service.name": "open-autoglm", "service.version": __version__}
    provider = TracerProvider(
        # What the environment says, such as OTEL_SERVICE_NAME, goes before what we say.
        resource=Resource(about).merge(_from_environment(Resource)),
        sampler=ParentBased(TraceIdRatioBased(share)),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return RequestTracer(provider)


def _from_environment(kind: Any) -> Any:
    """The resource that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES name, without the SDK's default name."""
    found = dict(kind.create().attributes)
    if str(found.get("service.name", "")).startswith("unknown_service"):
        del found["service.name"]
    return kind(found)


def _nanoseconds(record: RequestRecord, moment: float) -> int:
    """A moment of the monotonic clock as the time of day; never before the request."""
    return record.began_ns + max(0, int((moment - record.began) * 1e9))


def _request_attributes(record: RequestRecord) -> dict[str, Any]:
    attributes: dict[str, Any] = {"open_autoglm.request.id": record.request_id}
    if record.protocol == "http":
        attributes |= {"http.request.method": record.method, "http.route": record.route}
        if record.status:
            attributes["http.response.status_code"] = record.status
    else:
        attributes |= {"rpc.system": record.protocol, "rpc.method": record.route}
    if record.key_id is not None:
        attributes["open_autoglm.key.id"] = record.key_id
    if record.error is not None:
        attributes["error.type"] = record.error
    if record.cache is not None:
        attributes["open_autoglm.cache"] = record.cache
    return attributes


def _answer_attributes(record: RequestRecord) -> dict[str, Any]:
    tokens = record.tokens
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": record.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.usage.input_tokens": tokens.prompt,
    }
    if record.error is not None:
        attributes["error.type"] = record.error
    order = record.order
    if order is None:
        return attributes
    attributes |= {
        "gen_ai.usage.output_tokens": tokens.completion,
        "gen_ai.usage.cache_read.input_tokens": tokens.cached,
        "gen_ai.response.finish_reasons": [choice.finish_reason or "" for _, choice in record.answers],
        "open_autoglm.stream": bool(record.is_stream),
    }
    for name, attribute in _PARAMETERS.items():
        value = order.params.get(name)
        if isinstance(value, int | float):
            attributes[attribute] = value
    if record.num_choices != 1:
        attributes["gen_ai.request.choice.count"] = record.num_choices
    if record.form is not None and record.form.schema is not None:
        attributes["gen_ai.output.type"] = "json"
    return attributes


def _prefill_attributes(choice: ChoiceRecord) -> dict[str, Any]:
    usage = choice.usage
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }


def _decode_attributes(choice: ChoiceRecord) -> dict[str, Any]:
    found: dict[str, Any] = {"gen_ai.response.finish_reasons": [choice.finish_reason or ""]}
    if choice.usage is not None:
        found["gen_ai.usage.output_tokens"] = choice.usage.completion_tokens
    return found


def _may_call(record: RequestRecord) -> bool:
    return isinstance(record.order, ChatOrder) and bool(record.order.tools)
