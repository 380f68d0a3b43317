# SPDX-License-Identifier: Apache-2.0
"""How much of the engine's own speed does the server pass on, and what does it add to the first token?

python bench/serve_streams.py MODEL --quantize int8

The same prompts go through `LLM.chat` in a process of its own and through `open-autoglm serve` over raw sockets, in
turns. The client only counts bytes, so that it takes next to nothing: its processor seconds are in the record beside
those of the server's process and of the engine's, from /proc, which tell more than the clock where a machine does other
things too. `share_of_engine` is by the clock, of the whole of it: requests that come in one after the other, all their
tokens, the last event; the engine alone gets all prompts at once, before its first step. `steady_share` counts on both
sides only what is generated while all streams run, so what lies between the two is how the answers begin and end.
The first token is timed of requests that come one at a time, here and there: a few milliseconds after the one before (a
processor that has had nothing to do for that long takes two to four times as long for the same few steps), and again
without a pause, the server's on one connection. Both sides stay up for all rounds, which are short and many, since what
else a machine does changes from one second to the next; the interval is of the median, by bootstrap over rounds.
Writes bench/results/serve_streams_NAME.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine import RESULTS
from machine import describe_machine
from open_autoglm.storage import write_json

_PAUSE_SECONDS = 0.005
_FIRSTS = 20
"""First tokens that are timed in a round, with a pause and again without."""

_EVENT = re.compile(rb'"content":("(?:[^"\\\\]|\\\\.)*")')

_Read = list[tuple[float, bytes]]
"""What came on a connection, and when."""

_ENGINE = """
import json, sys, time
from open_autoglm import LLM
from open_autoglm.engine.engine import Engine
steps = []
def noted(self, step=Engine.step):
    deltas = step(self)
    steps.append((time.perf_counter(), len(deltas)))
    return deltas
Engine.step = noted
llm = LLM(sys.argv[1], **json.loads(sys.argv[2]))
streams, tokens, count = (int(word) for word in sys.argv[3:6])
prompts = [f"{index} hello, how are you today?" for index in range(streams)]
options = dict(max_tokens=tokens, ignore_eos=True, temperature=0.0, guided=False)
def first(pause):
    firsts = []
    for index in range(count):
        time.sleep(pause)
        began = time.perf_counter()
        llm.chat([f"{index} what is it?"], **{**options, "max_tokens": 1})
        firsts.append(time.perf_counter() - began)
    return sorted(firsts)[len(firsts) // 2]
llm.chat(prompts, **{**options, "max_tokens": 8})
for _ in sys.stdin:
    found = {"first": first(float(sys.argv[6])), "first_at_once": first(0.0)}
    steps.clear()
    began, cpu = time.perf_counter(), time.process_time()
    done = llm.chat(prompts, **options)
    found |= {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    full = [moment for moment, number in steps if number == streams]
    found["tokens"] = sum(len(item.token_ids) for item in done)
    found["tokens_per_s"] = found["tokens"] / found["seconds"]
    found["steady_tokens_per_s"] = streams * (len(full) - 1) / (full[-1] - full[0])
    print(json.dumps(found), flush=True)
"""


def main() -> None:
    """Measure both ways in turns and write the record."""
    arguments = _parse()
    options = {k: v for k, v in (("quantize", arguments.quantize), ("threads", arguments.threads)) if v is not None}
    found = measure_share(
        arguments.model, options, streams=arguments.streams, tokens=arguments.tokens, rounds=arguments.rounds,
        in_process=arguments.in_process,
    )  # fmt: skip
    record = {
        "command": f"python bench/serve_streams.py {arguments.model.name} --streams {arguments.streams}",
        "machine": describe_machine(),
        **found,
    }
    if arguments.write:
        write_json(RESULTS / f"serve_streams_{arguments.name or arguments.model.resolve().name}.json", record)
    for what, share in (("", found["share_of_engine"]), (" while all streams run", found["steady_share"])):
        if share is not None:
            low, high = share["interval"]
            print(f"share of the engine's tokens/s{what}: median {share['median']:.3f} ({low:.3f} to {high:.3f})")
    for what, name in (("", "added_to_first_token_ms"), (" without a pause", "added_at_once_ms")):
        low, high = found[name]["interval"]
        print(f"added to the first token{what}: median {found[name]['median']:.2f} ms ({low:.2f} to {high:.2f})")
    spent = found["processor_seconds_per_1000_tokens"]
    print(", ".join(f"{name} {value:.4f}" for name, value in spent.items()) + " processor seconds per 1,000 tokens")


def measure_share(
    model: Path, options: dict[str, Any], *, streams: int, tokens: int, rounds: int, in_process: bool = False
) -> dict[str, Any]:
    """The engine's tokens/s in a process of its own and the server's, in turns. options: of `LLM`, and flags alike."""
    found: list[dict[str, Any]] = []
    with (
        EngineAlone(model, options, streams, tokens) as engine,
        Served(model, options, streams, tokens, in_process=in_process) as server,
    ):
        for number in range(rounds):
            sides = {"engine": engine, "server": server}
            turn = list(sides.items())[:: 1 if number % 2 == 0 else -1]
            found.append({name: side.measure() for name, side in turn})
            print(_line(found[-1]), file=sys.stderr, flush=True)
        memory = server.memory()
    told = [item for item in found if item["server"]["steady_tokens_per_s"] is not None]
    steady = [_ratio(item, "steady_tokens_per_s") for item in told]
    produced = sum(item["server"]["tokens"] for item in found) / 1000
    return {
        "streams": streams,
        "tokens_per_stream": tokens,
        "settings": options,
        "share_of_engine": _spread([_ratio(item, "tokens_per_s") for item in found]),
        "steady_share": _spread(steady) if len(told) == len(found) else None,
        "added_to_first_token_ms": _spread([_added(item, "first") for item in found]),
        "added_at_once_ms": _spread([_added(item, "first_at_once") for item in found]),
        "processor_seconds_per_1000_tokens": {
            "server": sum(item["server"]["cpu_server"] for item in found) / produced,
            "its engine": sum(item["server"]["cpu_engine"] for item in found) / produced,
            "the engine alone": sum(item["engine"]["cpu"] for item in found) / produced,
            "client": sum(item["server"]["cpu_client"] for item in found) / produced,
        },
        "memory": memory,
        "rounds": found,
    }


def _ratio(item: dict[str, Any], name: str) -> float:
    return item["server"][name] / item["engine"][name]


def _added(item: dict[str, Any], name: str) -> float:
    return 1e3 * (item["server"][name] - item["engine"][name])


def _spread(values: list[float]) -> dict[str, Any]:
    """Of some rounds. interval: that holds 95% of the medians of as many rounds, drawn with replacement."""
    medians = np.median(np.random.default_rng(0).choice(values, (10_000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return {
        "median": statistics.median(values),
        "interval": [float(low), float(high)],
        "least": min(values),
        "most": max(values),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantize")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--name")
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--write", action="store_true", help="the record to bench/results")
    return parser.parse_args()


class EngineAlone:
    """`LLM` in a process of its own. python: the interpreter."""

    def __init__(
        self, model: Path, options: dict[str, Any], streams: int, tokens: int, *, python: str = sys.executable
    ) -> None:
        words = [str(model), json.dumps(options), str(streams), str(tokens), str(_FIRSTS), str(_PAUSE_SECONDS)]
        self._process = subprocess.Popen(
            [python, "-c", _ENGINE, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> EngineAlone:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def measure(self) -> dict[str, Any]:
        """A round."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Served:
    """`open-autoglm serve`. python: the interpreter."""

    def __init__(
        self,
        model: Path,
        options: dict[str, Any],
        streams: int,
        tokens: int,
        *,
        in_process: bool = False,
        python: str = sys.executable,
    ) -> None:
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        if in_process:
            words.append("--in-process")
        command = [python, "-m", "open_autoglm", "serve", str(model), "--port", "0", *words]
        self._streams, self._tokens = streams, tokens
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Served:
        assert self._process.stderr is not None
        found = re.search(r":(\d+)/v1", self._process.stderr.readline())
        assert found
        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # so that its log does not hold it up
        self._port = int(found[1])
        self._pids = [self._process.pid, *_children(self._process.pid)]
        _ask(self._port, self._streams, 8)  # the prompts' beginnings are known from now on, as to the engine alone
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    def measure(self) -> dict[str, Any]:
        """A round."""
        firsts = [_first(self._port, f"{index} what is it?") for index in range(_FIRSTS)]
        at_once = _firsts_at_once(self._port)
        before = [_cpu(pid) for pid in self._pids]
        began, own = time.perf_counter(), time.process_time()
        read = _ask(self._port, self._streams, self._tokens)
        seconds, own = time.perf_counter() - began, time.process_time() - own
        cpu = [_cpu(pid) - start for pid, start in zip(self._pids, before, strict=True)]
        total = sum(map(_tokens_of, read))
        return {
            "tokens": total,
            "seconds": seconds,
            "tokens_per_s": total / seconds,
            "steady_tokens_per_s": _steady(read),
            "cpu_server": cpu[0],
            "cpu_engine": sum(cpu[1:]),
            "cpu_client": own,
            "first": statistics.median(firsts),
            "first_at_once": statistics.median(at_once),
        }

    def memory(self) -> dict[str, dict[str, float]]:
        """Megabytes of the server's process and of its engine's."""
        return {str(index): _memory(pid) for index, pid in enumerate(self._pids)}


def _request(content: str, tokens: int, *, stream: bool = True) -> bytes:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "response_format": {"type": "text"},
        "stream": stream,
    }
    if stream:
        body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
    )


def _ask(port: int, streams: int, tokens: int) -> list[_Read]:
    """Read so many streams at once."""
    found: list[_Read] = []
    with selectors.DefaultSelector() as selector:
        for index in range(streams):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(_request(f"{index} hello, how are you today?", tokens))
            found.append([])
            selector.register(connection, selectors.EVENT_READ, found[-1])
        while selector.get_map():
            for key, _ in selector.select():
                connection, read = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                data = connection.recv(262144)
                read.append((time.perf_counter(), data))
                if not data or b"[DONE]" in b"".join([part for _, part in read[-2:]]):
                    selector.unregister(connection)
                    connection.close()
            time.sleep(0.005)  # what comes meanwhile is read at once
    return found


def _tokens_of(read: _Read) -> int:
    found = re.findall(rb'"completion_tokens": ?(\d+)', b"".join([data for _, data in read]))
    assert found, read[-1]
    return int(found[-1])


def _steady(streams: list[_Read]) -> float | None:
    """Tokens a second while all streams ran: of each, from its first event in that time to its last one.

    Events do not say how many tokens they bring; their share of the answer's characters tells it well enough. None
    where it does not: a model that may not stop goes on with special tokens, which have no characters.
    """
    events = [_events(read) for read in streams]
    if not all(events):
        return None
    begin, end = max(item[0][0] for item in events), min(item[-1][0] for item in events)
    if begin >= end:
        return None
    rate = 0.0
    for read, item in zip(streams, events, strict=True):
        inside = [(moment, size) for moment, size in item if begin <= moment <= end]
        if len(inside) > 1:
            size = sum(size for _, size in inside[1:]) / sum(size for _, size in item)
            rate += _tokens_of(read) * size / (inside[-1][0] - inside[0][0])
    return rate


def _events(read: _Read) -> list[tuple[float, int]]:
    """When each event with content came, and its characters."""
    found: list[tuple[float, int]] = []
    rest = b""
    for moment, data in read:
        *whole, rest = (rest + data).split(b"\n\n")
        size = sum(len(json.loads(text)) for event in whole for text in _EVENT.findall(event))
        if size:
            found.append((moment, size))
    return found


def _first(port: int, content: str) -> float:
    """Seconds to the first byte of an answer's body, on a connection of its own that is open already."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        time.sleep(_PAUSE_SECONDS)
        request = _request(content, 1)
        began = time.perf_counter()
        connection.sendall(request)
        seen = b""
        while b"data: " not in seen:
            seen += connection.recv(65536)
        return time.perf_counter() - began


def _firsts_at_once(port: int) -> list[float]:
    """Seconds to the first byte of answers, each asked for as soon as the one before has ended, on one connection."""
    found: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(_FIRSTS):
            request = _request(f"{index} what is it?", 1)
            began = time.perf_counter()
            connection.sendall(request)
            seen = b""
            while b"data: " not in seen:
                seen += connection.recv(65536)
            found.append(time.perf_counter() - began)
            while not seen.endswith(b"\r\n0\r\n\r\n"):
                seen += connection.recv(65536)
    return found


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> dict[str, float]:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return {key: int(found[key]) / 1024 for key in ("Rss", "Pss", "Pss_Anon", "Pss_File", "Private_Dirty")}


def _line(found: dict[str, Any]) -> str:
    own, served = found["engine"], found["server"]
    steady = served["steady_tokens_per_s"]
    running = "" if steady is None else f", {steady:.0f} of {own['steady_tokens_per_s']:.0f} while all run"
    return (
        f"engine {own['tokens_per_s']:.0f} tokens/s ({own['cpu']:.2f} cpu s, first {own['first'] * 1e3:.2f} ms, "
        f"at once {own['first_at_once'] * 1e3:.2f}); server {served['tokens_per_s']:.0f} tokens/s{running} "
        f"({served['cpu_engine']:.2f} + {served['cpu_server']:.2f} cpu s, client {served['cpu_client']:.2f}, first "
        f"{served['first'] * 1e3:.2f} ms, at once {served['first_at_once'] * 1e3:.2f})"
    )


if __name__ == "__main__":
    main()
