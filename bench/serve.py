# SPDX-License-Identifier: Apache-2.0
"""What does the server do under load, what share of the engine's speed does it pass on, and what does a peer do?

    python bench/serve.py runs/snips/bundle --model-folder DIR --llama-cpp-python PYTHON

Everything in under 12 minutes on two cores:

* `share`: 32 streams through the server and through `LLM.chat` in turns (`serve_streams.py`): the share of the engine's
  tokens/s, of all and of those generated while all streams run, and what the server adds to the first token.
* `load`: closed loops of 10, 500 and 5,000 users who ask again at once (with 5,000, twenty seconds pass before anything
  counts), and open loops whose requests come at random at half and at four fifths of the rate that the closed loops
  reached. On the bundle, whose answers are guided, and on a random checkpoint of `--shape`: 32 tokens for 16.
* llama.cpp's server on the same shape, taking turns with ours, at 10 and 500 users: `llama-server` where
  `--llama-server` names it, which answers many at once, else llama-cpp-python's, which answers one after the other.

The load comes from a process of its own on the same cores; `client_cores` says how much of a core it took, so whether
it was what limited a figure. Times to the first token count from when a request was due; `first_token_at_least_ms`
counts requests that were still waiting at the end, too, with the time that they had waited. Refusals (429, 503) are
counted apart.
Writes bench/results/NAME.json after each part, and a plot at the end; a part that fails is told in `faults`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from columns import table
from engine import RESULTS
from load_client import Load, open_many_files
from machine import command_line, describe_machine
from open_autoglm.storage import write_json
from plots import plot_lines
from serve_streams import measure_share
from served_models import Server, llama_command, llama_server, our_server, served_checkpoint

_TEST_COMMANDS = Path(__file__).resolve().parents[1] / "examples" / "snips" / "test.jsonl"
_CLIENT = Path(__file__).resolve().parent / "load_client.py"
_PROMPT_TOKENS, _ANSWER_TOKENS = 16, 32
_PEER_USERS = 500
_HERD, _HERD_WARM_UP, _HERD_SECONDS = 1000, 20.0, 40.0
"""Users from which on a load begins with so many seconds that are not counted, and lasts longer."""


def main() -> None:
    """Run what was asked for; the record is written after each part."""
    arguments = _parse()
    open_many_files()
    path = RESULTS / f"{arguments.name}.json"
    record = Record(path, arguments.seconds)
    with contextlib.ExitStack() as stack:
        folder = arguments.model_folder or Path(stack.enter_context(_temporary_folder()))
        shape = served_checkpoint(arguments.shape, folder)
        if "share" in arguments.only:
            for name, model, options, tokens in (
                (arguments.model.name, arguments.model, {}, 400),
                (arguments.shape, shape, {"quantize": "int8"}, 200),
            ):
                with record.part(f"share of {name}"):
                    found = measure_share(model, options, streams=32, tokens=tokens, rounds=arguments.rounds)
                    record.values.setdefault("share", {})[name] = found
        if "load" in arguments.only:
            _loads(arguments, shape, folder, record)
    _plot(record.values, path)
    print(json.dumps(record.values) if arguments.json else f"{_show(record.values)}\nwritten: {path}")


class Record:
    """What was found so far, in a file after each part."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._began = path, time.monotonic()
        self.values: dict[str, Any] = {
            "command": command_line(),
            "machine": describe_machine(),
            "limits": {
                "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                "cores": len(os.sched_getaffinity(0)),
                "shared_by": "the server, its engine and the client",
            },
            "seconds": seconds,
        }

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part whose fault is told and does not end the others."""
        try:
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 - told with the results
            self.values.setdefault("faults", {})[name] = f"{type(error).__name__}: {error}"[:2000]
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        """Write it."""
        self.values["minutes"] = round((time.monotonic() - self._began) / 60, 1)
        write_json(self._path, self.values)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a bundle built of examples/snips")
    parser.add_argument("--shape", default="built-19m", help="of the random checkpoint")
    parser.add_argument("--model-folder", type=Path, help="where random checkpoints are kept for the next run")
    parser.add_argument("--only", nargs="+", choices=("share", "load"), default=["share", "load"])
    parser.add_argument("--users", type=int, nargs="+", default=[10, 500, 5000])
    parser.add_argument("--rates", type=float, nargs="*", default=[0.5, 0.8], help="of open loops, of the best rate")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=12, help="of the share")
    parser.add_argument("--turns", type=int, default=2, help="of each side of the comparison")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    variable = "OPEN_AUTOGLM_BENCH_LLAMA_CPP_PYTHON"
    parser.add_argument("--llama-cpp-python", default=os.environ.get(variable), help="an interpreter with llama_cpp")
    parser.add_argument("--llama-server", default=os.environ.get("OPEN_AUTOGLM_BENCH_LLAMA_SERVER"))
    parser.add_argument("--name", default="serve", help="of the files that are written")
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    return parser.parse_args()


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        yield folder


def _loads(arguments: argparse.Namespace, shape: Path, folder: Path, record: Record) -> None:
    """All loads. Sides of one model take turns; the servers run one at a time."""
    threads = ["--threads", str(arguments.threads)]
    found: dict[str, Any] = record.values.setdefault("load", {})
    with (
        record.part(arguments.model.name),
        our_server(arguments.model.name, arguments.model, "/v1/chat/completions", _commands(), threads) as server,
    ):
        _all_loads(server, arguments, arguments.users, record, found.setdefault(server.name, []))
    ours = f"open-autoglm, {arguments.shape}"
    token_ids = [[5 + (7 * number + place) % 200 for place in range(_PROMPT_TOKENS)] for number in range(64)]
    words = [_completion("".join(f"w{item}" for item in ids)) for ids in token_ids]
    bodies = [_completion(ids) for ids in token_ids]
    options = ["--quantize", "int8", *threads]
    python, binary = arguments.llama_cpp_python, arguments.llama_server
    theirs = f"{'llama-server' if binary else 'llama-cpp-python'}, {arguments.shape}"
    fewer = [item for item in arguments.users if item <= _PEER_USERS]
    for turn in range(arguments.turns if python else 1):
        name = f"{ours}, turn {turn + 1}"
        with record.part(name), our_server(ours, shape, "/v1/completions", bodies, options) as server:
            users = fewer if turn else arguments.users
            _all_loads(server, arguments, users, record, found.setdefault(name, []))
        if not python:
            found["llama.cpp"] = "no interpreter given; see --llama-cpp-python"
            continue
        name = f"{theirs}, turn {turn + 1}"
        with record.part(name):
            command = llama_command(
                arguments.shape, folder, python=python, binary=binary, threads=arguments.threads, slots=32
            )
            with llama_server(theirs, command, "/v1/completions", words) as server:
                _all_loads(server, arguments, fewer, record, found.setdefault(name, []))


def _all_loads(
    server: Server, arguments: argparse.Namespace, users: list[int], record: Record, found: list[dict[str, Any]]
) -> None:
    load = Load(server.port, server.path, server.bodies, 4, min(2.0, arguments.seconds), tokens=_ANSWER_TOKENS)
    _load(server, load)
    load = dataclasses.replace(load, seconds=arguments.seconds)
    for count in users:
        # A herd of thousands takes seconds to come in: what is counted is what goes on after that.
        many = count > _HERD
        seconds = max(_HERD_SECONDS, arguments.seconds) if many else arguments.seconds
        crowd = dataclasses.replace(load, users=count, seconds=seconds, warm_up=_HERD_WARM_UP if many else 1.0)
        found.append(_load(server, crowd))
        record.save()
    best = max(item["requests_per_s"] for item in found)
    for share in arguments.rates:
        found.append(_load(server, dataclasses.replace(load, users=1000, rate=max(0.1, share * best))))
        record.save()


def _load(server: Server, load: Load) -> dict[str, Any]:
    cpu = server.processor_seconds()
    done = subprocess.Popen([sys.executable, str(_CLIENT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    out, _ = done.communicate(json.dumps(dataclasses.asdict(load)))
    if done.returncode:
        raise SystemExit("the load ended early")
    seen = json.loads(out)
    spent = {name: value - cpu.get(name, 0.0) for name, value in server.processor_seconds().items()}
    record = {
        "users": load.users if load.rate is None else None,
        "rate": None if load.rate is None else round(load.rate, 2),
        **seen,
        "refused": sum(count for how, count in seen["ends"].items() if how in ("429", "503")),
        "failed": sum(count for how, count in seen["ends"].items() if how not in ("200", "429", "503")),
        "cores": {name: round(value / (seen["seconds"] + load.warm_up), 3) for name, value in spent.items()},
        "memory_mb": server.memory(),
        "idle_after": server.wait_until_idle(),
    }
    print(f"{server.name}: {_line(record)}", file=sys.stderr, flush=True)
    return record


def _commands() -> list[str]:
    lines = _TEST_COMMANDS.read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["prompt"] for line in lines]
    random.Random(0).shuffle(texts)
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return [json.dumps({"messages": [{"role": "user", "content": text}], **stream}) for text in texts[:256]]


def _completion(prompt: Any) -> str:
    """For both servers: ours takes token ids, llama.cpp's a text that has about as many tokens."""
    body = {"prompt": prompt, "max_tokens": _ANSWER_TOKENS, "temperature": 0, "stream": True}
    if isinstance(prompt, str):
        return json.dumps({**body, "logit_bias": {"2": -100}})  # its end of text
    return json.dumps({**body, "ignore_eos": True, "stream_options": {"include_usage": True}})


_HEAD = [
    "requests/s",
    "tokens/s",
    "first p50",
    "p95",
    "p99 ms",
    "per token p50",
    "p99 ms",
    "refused",
    "failed",
    "cores",
]


def _cells(item: dict[str, Any]) -> list[str]:
    first, each = item["first_token_ms"] or {}, item["per_token_ms"] or {}
    cores = " + ".join(f"{value:.2f}" for value in item["cores"].values())
    return [
        f"{item['requests_per_s']:.1f}",
        f"{item['tokens_per_s']:.0f}",
        *(f"{first.get(name, float('nan')):.1f}" for name in ("p50", "p95", "p99")),
        *(f"{each.get(name, float('nan')):.2f}" for name in ("p50", "p99")),
        str(item["refused"]),
        str(item["failed"]),
        f"{cores}, client {item['client_cores']:.2f}",
    ]


def _line(item: dict[str, Any]) -> str:
    cells = zip(_HEAD, _cells(item), strict=True)
    return f"{_who(item)}: " + ", ".join(f"{name} {cell}" for name, cell in cells)


def _who(item: dict[str, Any]) -> str:
    return f"{item['users']} users" if item["rate"] is None else f"{item['rate']:g}/s at random"


def _show(record: dict[str, Any]) -> str:
    parts: list[str] = []
    for name, share in record.get("share", {}).items():
        whole, steady, added, at_once = (
            share[key] for key in ("share_of_engine", "steady_share", "added_to_first_token_ms", "added_at_once_ms")
        )
        low, high = whole["interval"]
        running = "" if steady is None else f"{steady['median']:.3f} while all of them run; "
        parts.append(
            f"{name}, 32 streams: {whole['median']:.3f} of the engine's tokens/s ({low:.3f} to {high:.3f}), {running}"
            f"{added['median']:.2f} ms added to the first token, {at_once['median']:.2f} without a pause"
        )
    rows: dict[str, list[str]] = {}
    for name, items in record.get("load", {}).items():
        if isinstance(items, str):
            parts.append(f"{name}: {items}")
            continue
        for item in items:
            memory = item["memory_mb"]["together"]
            rows[f"{name}: {_who(item)}"] = [*_cells(item), f"{memory:.0f} MB"]
    return "\n".join([*parts, table([*_HEAD, "memory"], rows)] if rows else parts)


def _plot(record: dict[str, Any], path: Path) -> None:
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {
        "requests/s": {},
        "first token p99, ms (at least, for those who still wait)": {},
    }
    for name, items in record.get("load", {}).items():
        if isinstance(items, str) or name.endswith("turn 2"):
            continue
        for item in items:
            if item["rate"] is None and item["first_token_at_least_ms"]:
                points = (item["requests_per_s"], item["first_token_at_least_ms"]["p99"])
                for panel, value in zip(panels.values(), points, strict=True):
                    panel.setdefault(name.removesuffix(", turn 1"), []).append((item["users"], value))
    if any(panels["requests/s"].values()):
        plot_lines(panels, title="users who ask again at once", label="users", path=path.with_suffix(".png"))


if __name__ == "__main__":
    main()
