# SPDX-License-Identifier: Apache-2.0
"""A real server with its gRPC twin, in a thread, and real channels to it."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvicorn
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from open_autoglm.engine import LLM
from open_autoglm.engine.model_service import ModelService
from open_autoglm.serve.app import create_app_of
from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.grpc.open_autoglm_pb2_grpc import LanguageModelsStub
from open_autoglm.serve.guards.connection_limits import connection_options
from open_autoglm.serve.guards.guard_chain import Guards
from open_autoglm.serve.guards.transport_security import ServerContext, tls_context
from open_autoglm.serve.models.model_client import OneModel
from open_autoglm.serve.settings import ServeSettings, open_socket
from tests.serve.conftest import Running

METHODS = (
    "Chat",
    "StreamChat",
    "Complete",
    "StreamComplete",
    "Embed",
    "Classify",
    "Tokenize",
    "Detokenize",
    "ListModels",
    "GetModel",
)
STREAMED = ("StreamChat", "StreamComplete")
_SERVICE = "/open_autoglm.v1.LanguageModels/"


@dataclass(frozen=True)
class Twin:
    """A server that speaks both."""

    rest: Running
    target: str
    stub: LanguageModelsStub
    channel: grpc.Channel
    guards: Guards
    tls: ServerContext | None

    def raw(self, method: str, data: bytes, **options: Any) -> Any:
        """Call a method with these bytes; the bytes, or a stream of bytes, that it answers."""
        options.setdefault("timeout", 30)
        make = self.channel.unary_stream if method in STREAMED else self.channel.unary_unary
        return make(_SERVICE + method)(data, **options)


def user(text: str) -> list[pb.ChatMessage]:
    return [pb.ChatMessage(role="user", content=text)]


def chat(text: str = "hello", **fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(**{"messages": user(text), "max_tokens": 3, **fields})


@dataclass(frozen=True)
class Fault:
    """How a call failed."""

    code: grpc.StatusCode
    message: str
    field: str | None
    reason: str
    retry_seconds: int | None
    trailers: dict[str, Any]


def fault_of(error: grpc.RpcError) -> Fault:
    trailers = dict(error.trailing_metadata() or ())
    status = Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    bad, info, retry = BadRequest(), ErrorInfo(), RetryInfo()
    has_bad = any(item.Unpack(bad) for item in status.details if item.Is(bad.DESCRIPTOR))
    has_retry = any(item.Unpack(retry) for item in status.details if item.Is(retry.DESCRIPTOR))
    assert any(item.Unpack(info) for item in status.details if item.Is(info.DESCRIPTOR))
    assert info.domain == "open-autoglm"
    assert "Traceback" not in error.details()
    assert ".py" not in error.details()
    field = bad.field_violations[0].field if has_bad else None
    return Fault(
        error.code(), error.details(), field, info.reason, retry.retry_delay.seconds if has_retry else None, trailers
    )


def failing(call: Any, *arguments: Any, **options: Any) -> Fault:
    """The fault of a call, whole or streamed."""
    options.setdefault("timeout", 30)
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(*arguments, **options)
        if hasattr(answer, "__next__"):
            list(answer)
    return fault_of(caught.value)


@contextlib.contextmanager
def twin(bundle: Path | LLM, **options: Any) -> Iterator[Twin]:
    """Serve a bundle, or a model that is loaded, on two free ports until the block ends."""
    settings = ServeSettings(port=0, grpc_port=0, **options)
    with open_socket(settings) as listener, bundle if isinstance(bundle, LLM) else LLM(bundle, threads=1) as llm:
        tls = tls_context(settings.tls)
        model = ModelService(llm, max_queued=settings.max_queued)
        app = create_app_of(OneModel(model, llm.name, 0), settings, tls)
        options = connection_options(settings, tls)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            port = listener.getsockname()[1]
            running = Running(f"http://127.0.0.1:{port}", port, model, llm)
            target = f"127.0.0.1:{app.state.grpc.port}"
            assert app.state.grpc.address == target
            with grpc.insecure_channel(target) as channel:
                yield Twin(running, target, LanguageModelsStub(channel), channel, app.state.guards, tls)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def talker(dialogue_bundle: Path) -> Iterator[Twin]:
    """Answers freely; its limits are small."""
    with twin(dialogue_bundle, max_body=50_000, max_choices=8, max_generated=1500) as running:
        yield running
