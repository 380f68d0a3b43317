# SPDX-License-Identifier: Apache-2.0
"""What does a request cost over gRPC, beside the same request over REST, on the same server?

python bench/serve_grpc.py MODEL --rounds 10

Blocks of requests alternate between the two, one request after the other over one connection each: a chat of one
token, a chat of 32 tokens whole and streamed, and tokenize, which asks the engine for no step. The clients are
http.client with JSON, and gRPC's own. Seconds are those of the client's clock; processor seconds are those of the
server's process, from /proc, and tell more than the clock where a machine does other things too.
Writes bench/results/serve_grpc_NAME.json.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from engine import RESULTS
from machine import command_line, describe_machine
from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.grpc.open_autoglm_pb2_grpc import LanguageModelsStub
from open_autoglm.storage import write_json

_TICK = os.sysconf("SC_CLK_TCK")
_TEXT = "what is it?"


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a bundle or checkpoint")
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each kind (default: 10)")
    parser.add_argument(
        "--requests", type=int, default=100, help="requests of a block, a tenth for longer answers (default: 100)"
    )
    arguments = parser.parse_args()
    machine = describe_machine()
    with _server(arguments.model) as (process, rest, target), grpc.insecure_channel(target) as channel:
        cases = dict(_cases(rest, LanguageModelsStub(channel)))
        for pair in cases.values():
            for ask in pair.values():
                for _ in range(20):
                    ask()
        found: dict[str, dict[str, list[dict[str, float]]]] = {
            name: {way: [] for way in pair} for name, pair in cases.items()
        }
        for _ in range(arguments.rounds):
            for name, pair in cases.items():
                for way, ask in pair.items():
                    count = arguments.requests // (10 if "32" in name else 1)
                    found[name][way].append(_block(process.pid, ask, max(1, count)))
    record = {
        "machine": {**machine, "load_average_after": round(os.getloadavg()[0], 2)},
        "command": command_line(),
        "cases": {name: {way: _summary(blocks) for way, blocks in pair.items()} for name, pair in found.items()},
    }
    path = RESULTS / f"serve_grpc_{Path(arguments.model).resolve().parent.name}.json"
    write_json(path, record)
    print(json.dumps(record["cases"], indent=1))


def _cases(rest: tuple[str, int], stub: LanguageModelsStub) -> Iterator[tuple[str, dict[str, Callable[[], object]]]]:
    connection = http.client.HTTPConnection(*rest)

    def post(path: str, body: dict[str, Any]) -> bytes:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse().read()
        assert b'"error"' not in answer, answer
        return answer

    def chat(tokens: int, *, stream: bool) -> dict[str, Callable[[], object]]:
        options: dict[str, Any] = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0.0}
        free = {"response_format": {"type": "text"}}
        messages = [{"role": "user", "content": _TEXT}]
        body = {"messages": messages, **options, **free, "stream": stream}
        asked = pb.ChatRequest(
            messages=[pb.ChatMessage(role="user", content=_TEXT)],
            response_format=pb.ResponseFormat(type="text"),
            **options,
        )

        def read() -> object:
            answer = post("/v1/chat/completions", body)
            return [json.loads(line[6:]) for line in answer.split(b"\n\n")[:-2]] if stream else json.loads(answer)

        def call() -> object:
            return list(stub.StreamChat(asked)) if stream else stub.Chat(asked)

        return {"rest": read, "grpc": call}

    yield "chat of 1 token", chat(1, stream=False)
    yield "chat of 32 tokens", chat(32, stream=False)
    yield "chat of 32 tokens, streamed", chat(32, stream=True)
    yield (
        "tokenize",
        {
            "rest": lambda: json.loads(post("/tokenize", {"prompt": _TEXT})),
            "grpc": lambda: stub.Tokenize(pb.TokenizeRequest(prompt=_TEXT)),
        },
    )


def _block(pid: int, ask: Callable[[], object], count: int) -> dict[str, float]:
    """Milliseconds of a request: the median by the clock, and the mean of the server's processor time."""
    cpu = _processor_seconds(pid)
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    spent = _processor_seconds(pid) - cpu
    return {"median_ms": statistics.median(times) * 1e3, "server_cpu_ms": spent / count * 1e3}


def _summary(blocks: list[dict[str, float]]) -> dict[str, float]:
    """The middle of the blocks, and the best, which others on the machine disturbed least."""
    return {
        "median_ms": round(statistics.median(item["median_ms"] for item in blocks), 3),
        "best_block_median_ms": round(min(item["median_ms"] for item in blocks), 3),
        "server_cpu_ms": round(statistics.mean(item["server_cpu_ms"] for item in blocks), 3),
    }


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@contextlib.contextmanager
def _server(model: str) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int], str]]:
    command = [sys.executable, "-m", "open_autoglm", "serve", model, "--port", "0", "--grpc-port", "0"]
    command += ["--threads", "1", "--keep-alive-seconds", "3600"]  # a connection waits while the other way is measured
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"ready: http://([^:]+):(\d+)/v1 serves .*, gRPC at (\S+) \(", line)
        if found is None:
            raise SystemExit(line + process.stderr.read())
        try:
            yield process, (found[1], int(found[2])), found[3]
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
