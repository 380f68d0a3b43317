# SPDX-License-Identifier: Apache-2.0
"""Calls that end early, health and reflection, and real server processes that drain, stop and come back."""

import gc
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.grpc.language_models import SERVICE
from open_autoglm.serve.grpc.open_autoglm_pb2_grpc import LanguageModelsStub
from open_autoglm.serve.settings import ServeSettings
from tests.serve.conftest import engine_held
from tests.serve.grpc.conftest import Twin, chat, twin
from tests.serve.process_tools import COMMAND, ENVIRONMENT, wait_until, workers_of

Code = grpc.StatusCode
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
LONG: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}


def test_a_clients_deadline_ends_the_work(talker: Twin) -> None:
    for method in (talker.stub.Chat, talker.stub.StreamChat):
        before = talker.rest.model.stats.num_steps
        with pytest.raises(grpc.RpcError) as caught:
            list(method(chat(n=7, **LONG), timeout=0.03))
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        talker.rest.wait_until_idle()
        assert talker.rest.model.stats.num_steps - before < 200


@pytest.mark.parametrize("method", ["Chat", "StreamChat"])
def test_a_call_that_is_cancelled_ends_the_work(talker: Twin, method: str) -> None:
    for _ in range(3):
        talker.rest.wait_until_idle()
        before = talker.rest.model.stats.num_steps
        with engine_held(talker.rest) as dropped:
            call = talker.stub.Chat.future(chat(**LONG)) if method == "Chat" else talker.stub.StreamChat(chat(**LONG))
            wait_until(lambda: talker.rest.model.num_open > 0)
            call.cancel()
            assert dropped.wait(30)
        # The step that was held, and at most one by which the engine looks at itself.
        assert talker.rest.model.stats.num_steps - before <= 2, "200 tokens were asked for"


def test_clients_that_go_away_leave_nothing_behind(talker: Twin) -> None:
    generator = random.Random(3)

    def visit(moment: int) -> None:
        with grpc.insecure_channel(talker.target) as channel:
            stub = LanguageModelsStub(channel)
            if moment % 3 == 0:
                call = stub.Chat.future(chat(**LONG))
                time.sleep(moment / 1000)
            else:
                call = stub.StreamChat(chat(**LONG))
                for _ in range(moment):
                    if next(call, None) is None:
                        break
            if moment % 2:
                call.cancel()  # the others just close their channel

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, [generator.randrange(40) for _ in range(60)]))
    talker.rest.wait_until_idle()


def test_health_and_reflection_say_what_there_is(talker: Twin) -> None:
    health = HealthStub(talker.channel)
    for service in ("", SERVICE):
        asked = HealthCheckRequest(service=service)
        wait_until(lambda asked=asked: health.Check(asked).status == SERVING)  # the engine computes a step at first
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(HealthCheckRequest(service="other"))
    assert caught.value.code() is Code.NOT_FOUND
    database = ProtoReflectionDescriptorDatabase(talker.channel)
    assert set(database.get_services()) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = database.FindFileContainingSymbol(SERVICE)
    assert file.SerializeToString() == pb.DESCRIPTOR.serialized_pb


def test_health_needs_no_key_and_reflection_does(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle, api_key="k") as running:
        health = HealthStub(running.channel)
        wait_until(lambda: health.Check(HealthCheckRequest()).status == SERVING)
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(running.channel).get_services()
        assert caught.value.code() is Code.UNAUTHENTICATED


@contextmanager
def server(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], grpc.Channel]]:
    """A server in a process of its own, and a channel to it."""
    command = [*COMMAND, "serve", *map(str, arguments), "--threads", "1", "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"ready: http://\S+/v1 serves \S+, gRPC at (\S+) \(", line)
        assert found, line + process.stderr.read()
        with grpc.insecure_channel(found[1]) as channel:
            yield process, channel
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def watched(channel: grpc.Channel, service: str = "") -> tuple[Any, list[int]]:
    """The states that a watcher is told, as they come."""
    states: list[int] = []
    call = HealthStub(channel).Watch(HealthCheckRequest(service=service))

    def read() -> None:
        with suppress(grpc.RpcError):
            states.extend(item.status for item in iter(lambda: next(call), None))

    threading.Thread(target=read, daemon=True).start()
    return call, states


def test_an_engine_that_stops_is_told_to_watchers_and_to_its_callers(dialogue_bundle: Path) -> None:
    with server(dialogue_bundle) as (process, channel):
        stub = LanguageModelsStub(channel)
        call, states = watched(channel, SERVICE)
        wait_until(lambda: states == [SERVING])
        [worker] = workers_of(process.pid)
        os.kill(worker, signal.SIGSTOP)  # before it is asked: it may have answered before a signal arrives
        stream = stub.StreamChat(chat(**LONG), timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is Code.UNAVAILABLE
        assert "engine" in caught.value.details()
        wait_until(lambda: states[-1] == NOT_SERVING)
        wait_until(lambda: states == [SERVING, NOT_SERVING, SERVING])
        assert stub.Chat(chat(), timeout=30).choices
        call.cancel()


def test_sigterm_lets_calls_end_and_takes_no_more(dialogue_bundle: Path) -> None:
    with server(dialogue_bundle) as (process, channel):
        stub = LanguageModelsStub(channel)
        _, states = watched(channel)
        streams = [stub.StreamChat(chat(**LONG), timeout=60) for _ in range(12)]
        for stream in streams:
            next(stream)
        with ThreadPoolExecutor(12) as pool:
            reading = [pool.submit(list, stream) for stream in streams]
            process.send_signal(signal.SIGTERM)
            answers = [job.result() for job in reading]
        assert process.wait(30) == 0
        for chunks in answers:
            assert chunks[-1].usage.completion_tokens == 200, "what has begun ends"
        assert states == [SERVING, NOT_SERVING]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Chat(chat(), timeout=5)
        assert caught.value.code() is Code.UNAVAILABLE


def test_what_cannot_be_is_told_before_a_model_loads(dialogue_bundle: Path) -> None:
    def fails(*arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, "serve", str(dialogue_bundle), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=ENVIRONMENT,
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 4, "one sentence, and nothing of the library's own"
        return re.sub(r"\s+", " ", done.stderr)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "--grpc-port" in fails("--port", "0", "--grpc-port", port)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"port": 7, "grpc_port": 7}, "give two"),
        ({"grpc_port": 70_000}, "not a port"),
    )
    for options, words in wrong:
        with pytest.raises(ConfigurationError, match=words):
            ServeSettings(**options)


def test_nothing_of_grpc_is_loaded_without_the_port(dialogue_bundle: Path) -> None:
    code = (
        "import sys; from open_autoglm.serve.app import create_app; from open_autoglm.serve.server import run_server;"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('grpc', 'google')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    hidden = (
        "import sys; sys.modules['grpc'] = None; from open_autoglm.cli import main;"
        f"sys.argv = ['x', 'serve', {str(dialogue_bundle)!r}, '--port', '0', '--grpc-port', '0']; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "open-autoglm[grpc]" in re.sub(r"\s+", "", done.stderr)


def test_a_server_that_has_ended_lets_its_model_go(dialogue_bundle: Path) -> None:
    with twin(dialogue_bundle) as running:
        assert running.stub.Chat(chat(), timeout=30).choices
        assert running.rest.post({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}).status_code == 200
        model = weakref.ref(running.rest.llm)
    del running
    gc.collect()
    assert model() is None
