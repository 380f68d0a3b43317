# SPDX-License-Identifier: Apache-2.0
"""Real servers with real engines in processes of their own: dying, stopping, draining, and who is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.serve.process_tools import (
    Server,
    is_alive,
    is_explicit,
    open_stream,
    read_all,
    server,
    wait_until,
    workers_of,
)
from tests.thoroughness import times


def ready(running: Server) -> httpx.Response:
    return httpx.get(f"{running.url[:-3]}/ready", timeout=30)


def idle(running: Server) -> bool:
    health = httpx.get(f"{running.url[:-3]}/health", timeout=30).json()
    blocks = health["kv_blocks"]
    return not health["running"] and not health["waiting"] and blocks["free"] == blocks["total"] > 0


def test_health_and_ready_tell_a_stopped_engine_and_streams_end_with_a_word(dialogue_bundle: Path) -> None:
    with server(dialogue_bundle) as running:
        assert ready(running).json() == {"status": "ready", "models": {"talker": {"state": "ready", "ready": True}}}
        before = running.worker
        streams = [open_stream(running.port, max_tokens=200) for _ in range(6)]
        os.kill(before, signal.SIGSTOP)
        with ThreadPoolExecutor(6) as pool:
            reading = [pool.submit(read_all, raw) for raw in streams]
            wait_until(lambda: ready(running).status_code == 503)
            assert httpx.get(f"{running.url[:-3]}/health", timeout=30).status_code == 200, "the server itself lives"
            assert all(is_explicit(job.result()) for job in reading)
        wait_until(lambda: ready(running).status_code == 200)
        assert running.worker != before
        assert not is_alive(before)
        assert b"[DONE]" in read_all(open_stream(running.port, max_tokens=5))
        assert httpx.get(f"{running.url}/models", timeout=30).json()["data"][0]["state"] == "ready"


@pytest.mark.parametrize("is_stopped", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_no_engine_outlives_its_server(dialogue_bundle: Path, is_stopped: bool) -> None:
    with server(dialogue_bundle) as running:
        worker = running.worker
        if is_stopped:
            os.kill(worker, signal.SIGSTOP)
        raw = open_stream(running.port, max_tokens=200)
        running.process.kill()
        wait_until(lambda: not is_alive(worker))
        raw.close()


def test_sigterm_under_load_cuts_no_stream(dialogue_bundle: Path) -> None:
    with server(dialogue_bundle) as running:
        worker = running.worker
        with ThreadPoolExecutor(24) as pool:
            streams = [open_stream(running.port, max_tokens=200) for _ in range(24)]
            assert streams[0].recv(1, socket.MSG_PEEK), "it has begun"
            reading = [pool.submit(read_all, raw) for raw in streams]
            running.process.send_signal(signal.SIGTERM)
            answers = [job.result() for job in reading]
        assert running.process.wait(60) == 0
        assert not is_alive(worker)
    for answer in answers:
        assert is_explicit(answer)
        if answer.startswith(b"HTTP/1.1 200"):
            assert b"data: [DONE]" in answer, "what has begun ends"
    assert any(b"data: [DONE]" in answer for answer in answers)


def test_the_second_sigterm_ends_it_at_once(dialogue_bundle: Path) -> None:
    options = ("--max-num-seqs", "1")
    with server(dialogue_bundle, *options) as running:
        streams = [open_stream(running.port, max_tokens=240, n=6) for _ in range(60)]
        wait_until(lambda: httpx.get(f"{running.url[:-3]}/health").json()["running"] > 0)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert running.process.poll() is None, "it waits for the answers in work"
        running.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        running.process.wait(30)
        assert time.monotonic() - began < 15, "and not the half minute that it has for them"
        for raw in streams:
            raw.close()


def test_clients_that_go_away_leave_nothing_behind(dialogue_bundle: Path) -> None:
    with server(dialogue_bundle) as running:

        def visit(index: int) -> bytes:
            raw = open_stream(running.port, max_tokens=60)
            if index % 2:
                return read_all(raw)
            raw.settimeout(30)
            if index % 4:
                raw.recv(100 * (index % 13))
            raw.close()
            return b""

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(visit, range(times(80, 200))))
        assert all(b"[DONE]" in answer for answer in answers[1::2])
        time.sleep(0.6)  # what the engine says of itself is new by then
        wait_until(lambda: idle(running))


def test_a_servers_process_knows_nothing_of_engines_and_an_engines_nothing_of_servers(dialogue_bundle: Path) -> None:
    with server(dialogue_bundle) as running:
        assert b"[DONE]" in read_all(open_stream(running.port, max_tokens=2))
        own = Path(f"/proc/{running.process.pid}/maps").read_text()
        for name in ("numpy", "tokenizers", "llguidance", "_native.", "libtorch"):
            assert name not in own, f"{name} is loaded in the server's process"
        engine = Path(f"/proc/{running.worker}/maps").read_text()
        assert "numpy" in engine
        assert "_native." in engine
    code = "import open_autoglm.engine.worker, sys; print(sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("fastapi", "uvicorn", "starlette", "asyncio", "torch", "open_autoglm.serve"):
        assert f"'{name}'" not in found, f"{name} is loaded in the engine's process"


def test_an_engine_in_the_servers_own_process_when_asked(dialogue_bundle: Path) -> None:
    with server(dialogue_bundle, "--in-process") as running:
        assert workers_of(running.process.pid) == []
        wait_until(lambda: ready(running).status_code == 200)
        answer = read_all(open_stream(running.port, max_tokens=5))
        assert b"[DONE]" in answer
        assert json.loads(answer.split(b"data: ")[1].split(b"\n")[0])["model"] == "talker"
