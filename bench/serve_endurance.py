# SPDX-License-Identifier: Apache-2.0
"""Does a server come back, whatever ends its engine, and does it keep nothing of clients that went away?

python bench/serve_endurance.py MODEL

* `kill`, `stop`: SIGKILL and SIGSTOP of the engine under load, `--rounds` times each: every request must end whole or
  with an explicit error, and the service must be back.
* `term`: SIGTERM of the server under load, `--rounds` times: no stream may be cut off.
* `leave`: `--streams` streams, half of which their clients leave: blocks, connections and files must be free again.

Prints a line for each and ends with status 1 when one does not hold.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from served_models import becomes_idle

_CLIENTS = 16


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", choices=("kill", "stop", "term", "leave"), action="append")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=60)
    arguments = parser.parse_args()
    wanted = arguments.only or ["kill", "stop", "term", "leave"]
    holds = True
    for name, number in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)):
        if name in wanted:
            holds &= _hit_engine(arguments, name, number)
    if "term" in wanted:
        holds &= _end_server(arguments)
    if "leave" in wanted:
        holds &= _leave(arguments)
    raise SystemExit(0 if holds else 1)


@contextlib.contextmanager
def _server(model: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "open_autoglm", "serve", str(model), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            found = re.search(r":(\d+)/v1", line)
            assert found, line
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield server, int(found[1])
        finally:
            server.kill()


def _hit_engine(arguments: argparse.Namespace, name: str, number: signal.Signals) -> bool:
    ends: collections.Counter[str] = collections.Counter()
    stop = threading.Event()
    down: list[float] = []
    with _server(arguments.model) as (server, port), ThreadPoolExecutor(_CLIENTS) as pool:

        def ask() -> None:
            while not stop.is_set():
                end = _ask(port, random.randint(1, arguments.tokens))
                ends[end] += 1
                if end != "whole":
                    time.sleep(0.05)

        jobs = [pool.submit(ask) for _ in range(_CLIENTS)]
        try:
            for _ in range(arguments.rounds):
                time.sleep(random.uniform(0.2, 1.0))
                pid = _engine_of(server.pid)
                os.kill(pid, number)
                began = time.monotonic()
                while _engine_of(server.pid) in (pid, 0) or _status(port, "/ready") != 200 or _ask(port, 2) != "whole":
                    if time.monotonic() - began > 120:
                        raise SystemExit(f"{name}: the service did not come back")
                    time.sleep(0.02)
                down.append(time.monotonic() - began)
        finally:
            stop.set()
        for job in jobs:
            job.result()
        idle = _until_idle(port)
    silent = ends["cut off"]
    print(
        f"{name} x {arguments.rounds}: {dict(ends)}; back after {sum(down) / len(down):.1f} s, "
        f"at most {max(down):.1f} s; all blocks free: {idle}",
        flush=True,
    )
    return not silent and idle


def _end_server(arguments: argparse.Namespace) -> bool:
    ends: collections.Counter[str] = collections.Counter()
    codes: collections.Counter[int] = collections.Counter()
    for _ in range(arguments.rounds):
        with _server(arguments.model) as (server, port), ThreadPoolExecutor(_CLIENTS) as pool:
            jobs = [pool.submit(_ask, port, 200) for _ in range(2 * _CLIENTS)]
            time.sleep(random.uniform(0.05, 0.6))
            server.send_signal(signal.SIGTERM)
            for job in jobs:
                ends[job.result()] += 1
            codes[server.wait(60)] += 1
    print(f"term x {arguments.rounds}: {dict(ends)}; exit codes {dict(codes)}", flush=True)
    return not ends["cut off"] and set(codes) == {0}


def _leave(arguments: argparse.Namespace) -> bool:
    ends: collections.Counter[str] = collections.Counter()
    with _server(arguments.model) as (server, port), ThreadPoolExecutor(64) as pool:
        list(pool.map(lambda _: _ask(port, 5), range(500)))
        engine = _engine_of(server.pid)
        before = _holdings(server.pid), _holdings(engine)
        began = time.monotonic()

        def visit(index: int) -> None:
            ends[_ask(port, arguments.tokens, leave_after=None if index % 2 else random.randint(0, 1500))] += 1

        list(pool.map(visit, range(arguments.streams)))
        seconds = time.monotonic() - began
        idle = _until_idle(port)
        time.sleep(1.0)
        after = _holdings(server.pid), _holdings(engine)
        same = all(
            then["files"] == now["files"] and then["threads"] == now["threads"]
            for then, now in zip(before, after, strict=True)
        )
    print(
        f"leave: {dict(ends)} in {seconds:.0f} s; all blocks free: {idle}; server and engine {before} -> {after}",
        flush=True,
    )
    return idle and same and not ends["cut off"]


def _ask(port: int, tokens: int, leave_after: int | None = None) -> str:
    """Ask for a stream. leave_after: bytes. Returns how it ended: whole, error, refused, left or cut off."""
    body = {
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "ignore_eos": True,
        "max_tokens": tokens,
    }
    data = json.dumps({**body, "response_format": {"type": "text"}}).encode()
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {len(data)}",
    )
    head = "\r\n".join((*lines, "", ""))
    seen = b""
    try:
        connection = socket.create_connection(("127.0.0.1", port), 120)
    except OSError:
        return "refused"
    with connection:
        try:
            connection.sendall(head.encode() + data)
            while leave_after is None or len(seen) < leave_after:
                chunk = connection.recv(65536)
                if not chunk:
                    break
                seen += chunk
            else:
                return "left"
        except OSError:
            return "cut off" if seen else "refused"
    if b"data: [DONE]" in seen:
        return "whole"
    if not seen:
        return "refused"
    return "error" if b'"error"' in seen else "cut off"


def _engine_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"engine.worker" in Path(f"/proc/{word}/cmdline").read_bytes():
                return int(word)
    return 0


def _holdings(pid: int) -> dict[str, Any]:
    status = Path(f"/proc/{pid}/status").read_text()
    memory = re.search(r"RssAnon:\s+(\d+)", status)
    threads = re.search(r"Threads:\s+(\d+)", status)
    assert memory
    assert threads
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"files": files, "threads": int(threads[1]), "anonymous_mb": int(memory[1]) // 1024}


def _status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def _until_idle(port: int) -> bool:
    """Whether the engine holds nothing any more, within ten seconds."""
    time.sleep(0.6)  # what the server knows of its engine is new by then
    return becomes_idle(port, looks=200)


if __name__ == "__main__":
    main()
