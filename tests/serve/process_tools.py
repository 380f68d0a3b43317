# SPDX-License-Identifier: Apache-2.0
"""What the tests of processes share: models in processes of their own, real servers, and who is alive."""

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

from open_autoglm.engine.orders import ChatOrder, Piece
from open_autoglm.serve.models.engine_process import EngineProcess, EngineWatch
from open_autoglm.serve.models.worker_process import ModelSource

COMMAND = (sys.executable, "-m", "open_autoglm")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
QUICK = EngineWatch(start_seconds=60, silence_seconds=1.0, backoff_seconds=0.1, longest_backoff=0.5)


def run(work: Coroutine[Any, Any, Any], seconds: float = 120) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(limited())


def order(text: str = "hello", n: int = 1, **params: Any) -> ChatOrder:
    """An order for free text that ends with max_tokens."""
    given = {"max_tokens": 40, "temperature": 0.0, "ignore_eos": True, **params}
    return ChatOrder([{"role": "user", "content": text}], given, n=n)


@contextlib.asynccontextmanager
async def engine(folder: Path, watch: EngineWatch = QUICK, **options: Any) -> AsyncIterator[EngineProcess]:
    source = ModelSource(str(folder), {"threads": 1, **options})
    model = EngineProcess(source, max_queued=2000, watch=watch, label=folder.parent.name)
    await model.start()
    try:
        yield model
    finally:
        await model.stop()


async def read(model: Any, asked: ChatOrder) -> list[Piece]:
    return [piece async for some in model.stream(asked) for piece in some]


async def until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        await asyncio.sleep(0.01)


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def workers_of(pid: int) -> list[int]:
    """The engine processes that a server has started."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"engine.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


class Server:
    """A server in a process of its own. lines: what it has written to stderr."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url
        self.port = int(url.rsplit(":", 1)[1].partition("/")[0])

    @property
    def worker(self) -> int:
        [pid] = workers_of(self.process.pid)
        return pid


@contextlib.contextmanager
def server(*arguments: str | Path, cwd: Path | None = None) -> Iterator[Server]:
    # A second thread would wait for its share of so small a step by spinning, on the core of other tests.
    threads = () if "--models" in arguments else ("--threads", "1")
    process = subprocess.Popen(
        [*COMMAND, "serve", *threads, *map(str, arguments), "--port", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
        cwd=cwd,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"ready: (http://\S+/v1) serves", line)
        assert found, line + process.stderr.read()
        yield Server(process, found[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def open_stream(port: int, **fields: Any) -> socket.socket:
    """Ask for a stream over a socket of its own; the answer is read by the caller."""
    body = {"messages": [{"role": "user", "content": "hello"}], "stream": True, "ignore_eos": True, **fields}
    data = json.dumps(body).encode()
    raw = socket.create_connection(("127.0.0.1", port), 30)
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {len(data)}",
    )
    head = "\r\n".join((*lines, "", ""))
    raw.sendall(head.encode() + data)
    return raw


def read_all(raw: socket.socket) -> bytes:
    parts: list[bytes] = []
    with raw:
        while data := raw.recv(65536):
            parts.append(data)
    return b"".join(parts)


def is_explicit(answer: bytes) -> bool:
    """Whether an answer is whole, or says that it failed: no stream ends without a word."""
    if answer.startswith(b"HTTP/1.1 200"):
        return b"data: [DONE]" in answer or b'data: {"error"' in answer
    return answer.startswith(b"HTTP/1.1 5") and b'"error"' in answer
