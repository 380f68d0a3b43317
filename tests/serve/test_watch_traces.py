# SPDX-License-Identifier: Apache-2.0
"""Spans: their tree, times and attributes in memory, and what a real collector's socket gets over OTLP."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from open_autoglm.engine import LLM
from open_autoglm.engine.model_service import ModelService
from open_autoglm.engine.orders import ChatOrder, EmbedOrder
from open_autoglm.errors import RequestError
from open_autoglm.serve.models.model_client import OneModel
from open_autoglm.serve.watching.request_record import RequestRecord
from open_autoglm.serve.watching.tracing import RequestTracer
from open_autoglm.serve.watching.watch import Watch
from open_autoglm.serve.watching.watch_settings import WatchSettings
from open_autoglm.serve.watching.watched_models import watched
from tests.serve.checkpoints import PING, make_llm
from tests.serve.conftest import serving
from tests.serve.process_tools import order, run

TRACE, PARENT = "a" * 31 + "b", "c" * 16


class Traced:
    """A model, watched, whose spans stay in memory."""

    def __init__(self, model: ModelService, *, share: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)))
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._models = OneModel(model, "m", 0)
        self._watch = Watch(self._models, WatchSettings(), tracer=RequestTracer(provider))

    async def stream(self, asked: ChatOrder, *headers: tuple[bytes, bytes]) -> RequestRecord:
        record = self._watch.begin(method="POST", route="/v1/chat/completions", headers=headers)
        try:
            async with watched(self._models, record).use("m") as model:
                async for _ in model.stream(asked):
                    pass
            record.status = 200
        except RequestError:
            record.status = 400
        self._watch.end(record, "key-1")
        return record

    async def ask(self, question: EmbedOrder) -> None:
        record = self._watch.begin(protocol="grpc", method="", route="autoglm.Embed")
        async with watched(self._models, record).use("m") as model:
            await model.ask(question)
        record.status = 200
        self._watch.end(record)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        found = self._exporter.get_finished_spans()
        names = {span.name: span for span in found}
        assert len(names) == len(found)
        return names


def traced(llm: LLM, work: Any) -> Any:
    async def started() -> Any:
        model = ModelService(llm)
        await model.start()
        try:
            return await work(model)
        finally:
            await model.stop()

    return run(started())


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_is_a_tree_of_spans_in_the_order_of_its_phases(dialogue_bundle: Path) -> None:
    header = (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())

    async def work(model: ModelService) -> tuple[dict[str, ReadableSpan], RequestRecord]:
        ours = Traced(model, share=0.0)  # it is the caller who decided
        record = await ours.stream(order(max_tokens=20, seed=3), header, (b"tracestate", b"x=1"))
        return ours.spans, record

    with LLM(dialogue_bundle, threads=1) as llm:
        spans, record = traced(llm, work)
    assert set(spans) == {"POST /v1/chat/completions", "chat m", "prepare", "queue", "prefill", "decode"}
    root, answer = spans["POST /v1/chat/completions"], spans["chat m"]
    assert root.context is not None
    assert root.parent is not None
    assert answer.context is not None
    assert answer.parent is not None
    assert f"{root.context.trace_id:032x}" == TRACE
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.context.trace_state.get("x") == "1"
    assert root.kind is SpanKind.SERVER
    assert attributes(root) == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
        "open_autoglm.request.id": record.request_id, "open_autoglm.key.id": "key-1",
    }  # fmt: skip
    assert answer.parent.span_id == root.context.span_id
    tokens = record.tokens
    assert attributes(answer) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "open_autoglm", "gen_ai.request.model": "m",
        "gen_ai.response.model": "m", "gen_ai.usage.input_tokens": tokens.prompt, "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 0, "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.request.max_tokens": 20, "gen_ai.request.temperature": 0.0, "gen_ai.request.seed": 3,
        "open_autoglm.stream": True,
    }  # fmt: skip
    phases = [spans[name] for name in ("prepare", "queue", "prefill", "decode")]
    for phase in phases:
        assert phase.parent is not None
        assert phase.parent.span_id == answer.context.span_id
    moments = [moment for phase in phases for moment in (phase.start_time, phase.end_time)]
    assert None not in moments
    assert moments == sorted(moment for moment in moments if moment is not None)
    assert moments[0] == root.start_time
    assert root.end_time is not None
    assert moments[-1] is not None
    assert moments[-1] <= root.end_time
    assert attributes(spans["decode"])["gen_ai.usage.output_tokens"] == 20
    assert attributes(spans["prefill"])["gen_ai.usage.input_tokens"] == tokens.prompt


def test_choices_questions_and_faults_have_spans_of_their_own(dialogue_bundle: Path) -> None:
    async def work(model: ModelService) -> None:
        both = Traced(model)
        record = await both.stream(order(n=2, max_tokens=3))
        found = both._exporter.get_finished_spans()  # pyright: ignore[reportPrivateUsage] - names come twice here
        indices = sorted(attributes(span)["open_autoglm.choice.index"] for span in found if span.name == "decode")
        assert indices == [0, 1]
        answer = next(span for span in found if span.name == "chat m")
        assert attributes(answer)["gen_ai.request.choice.count"] == 2
        assert attributes(answer)["gen_ai.usage.output_tokens"] == 6
        assert record.tokens.prompt == attributes(answer)["gen_ai.usage.input_tokens"]
        question = Traced(model)
        await question.ask(EmbedOrder(["hello"]))
        assert set(question.spans) == {"autoglm.Embed", "embeddings m"}
        assert attributes(question.spans["autoglm.Embed"])["rpc.system"] == "grpc"
        assert attributes(question.spans["embeddings m"])["gen_ai.usage.input_tokens"] > 0
        wrong = Traced(model)
        await wrong.stream(order(max_tokens=10_000))
        root = wrong.spans["POST /v1/chat/completions"]
        assert attributes(root)["error.type"] == "invalid_request"
        assert root.status.status_code is StatusCode.UNSET, (
            "by convention, what the client did wrong is no error of ours"
        )
        assert wrong.spans["chat m"].status.status_code is StatusCode.ERROR
        assert wrong.spans["chat m"].status.description is None, "what is wrong with a request may quote it"
        unwanted = Traced(model)
        await unwanted.stream(order(max_tokens=2), (b"traceparent", f"00-{TRACE}-{PARENT}-00".encode()))
        assert not unwanted.spans
        for header in (b"", b"00-zz", b"ff-" + b"a" * 200, f"00-{'0' * 32}-{PARENT}-01".encode()):
            strange = Traced(model)
            await strange.stream(order(max_tokens=2), (b"traceparent", header))
            assert strange.spans["POST /v1/chat/completions"].parent is None

    with LLM(dialogue_bundle, threads=1) as llm:
        traced(llm, work)


def test_reading_calls_of_tools_has_a_span() -> None:
    async def work(model: ModelService) -> dict[str, ReadableSpan]:
        ours = Traced(model)
        params = {"max_tokens": 60, "temperature": 0.0}
        await ours.stream(ChatOrder([{"role": "user", "content": "x"}], params, tools=[PING], tool_choice="required"))
        return ours.spans

    with make_llm("glm-4") as llm:
        spans = traced(llm, work)
    parse, decode = spans["parse tool calls"], spans["decode"]
    assert parse.start_time is not None
    assert parse.end_time == decode.end_time
    assert decode.start_time is not None
    assert decode.start_time <= parse.start_time < (parse.end_time or 0)
    assert attributes(spans["chat m"])["gen_ai.response.finish_reasons"] == ("tool_calls",)


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """A socket that takes what an OTLP collector takes. Yields its address, and what came, by path."""
    taken: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-protobuf"
            taken.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_address[1]}", taken
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def test_a_collector_gets_the_spans_of_a_server(dialogue_bundle: Path) -> None:
    body = {"messages": [{"role": "user", "content": "my secret"}], "max_tokens": 5, "ignore_eos": True}
    with collector() as (address, taken):
        watching = WatchSettings(otlp_endpoint=address)
        with serving(dialogue_bundle, watching=watching) as running:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
            assert running.post(body, headers=headers).status_code == 200
            assert running.post({**body, "stream": True}).status_code == 200
            assert httpx.get(f"{running.url}/health").status_code == 200
        # What was not sent yet was sent when the server ended.
        assert {path for path, _ in taken} == {"/v1/traces"}
        resources = [item for _, request in taken for item in request.resource_spans]
        for resource in resources:
            about = {item.key: item.value.string_value for item in resource.resource.attributes}
            assert about["service.name"] == "open-autoglm"
        spans = [span for item in resources for scope in item.scope_spans for span in scope.spans]
        names = [span.name for span in spans]
        assert names.count("chat talker") == names.count("decode") == names.count("POST /v1/chat/completions") == 2
        assert names.count("GET /health") == 1
        ours = [span for span in spans if span.trace_id.hex() == TRACE]
        assert len(ours) == 6
        root = next(span for span in ours if span.name == "POST /v1/chat/completions")
        assert root.parent_span_id.hex() == PARENT
        known = {item.key: item.value for item in root.attributes}
        assert known["open_autoglm.request.id"].string_value == "mine"
        assert known["http.response.status_code"].int_value == 200
        assert "my secret" not in str(spans)


def test_a_collector_that_is_away_keeps_nobody(dialogue_bundle: Path, free_port: Any) -> None:
    watching = WatchSettings(otlp_endpoint=f"http://127.0.0.1:{free_port()}/v1/traces")
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    with serving(dialogue_bundle, watching=watching) as running:
        assert running.post(body).status_code == 200


OFF = """
import sys, open_autoglm.serve.server
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert not {"rich", "structlog", "grpc"} & set(sys.modules)
"""
MISSING = """
import sys
sys.modules["opentelemetry.sdk.trace"] = None
from open_autoglm.serve.watching.tracing import otlp_tracer
from open_autoglm.errors import ConfigurationError
try:
    otlp_tracer("http://127.0.0.1:1", 1.0)
except ConfigurationError as error:
    assert "pip install 'open-autoglm[otel]'" in str(error)
else:
    raise SystemExit("it was there")
"""


@pytest.mark.parametrize("code", [OFF, MISSING])
def test_nothing_is_loaded_without_need_and_what_lacks_is_named(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
