# SPDX-License-Identifier: Apache-2.0
"""Servers to put a load on: ours over a bundle or a random checkpoint, llama.cpp's over the same shape."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import own_bytes, proportional_bytes
from random_checkpoint import ensure_checkpoint
from shapes import SHAPES

_PATIENCE = 120.0
_TICK = os.sysconf("SC_CLK_TCK")
_COMMANDS = Path(__file__).resolve().parents[1] / "examples" / "snips" / "train.jsonl"
_PEERS = Path(__file__).resolve().parent / "peers"


@dataclasses.dataclass
class Server:
    """A process that serves. pids: of it and of those that it started. path, bodies: what it is asked."""

    name: str
    port: int
    process: subprocess.Popen[Any]
    path: str
    bodies: list[str]

    @property
    def pids(self) -> dict[str, int]:
        """The processes by name."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {
            "server": self.process.pid,
            **{f"engine{number or ''}": int(pid) for number, pid in enumerate(children)},
        }

    def processor_seconds(self) -> dict[str, float]:
        """What each process has used so far."""
        return {name: _processor_seconds(pid) for name, pid in self.pids.items()}

    def memory(self) -> dict[str, float]:
        """Megabytes of each process: its own pages, and its share of those that it shares."""
        found = {name: own_bytes(pid) / 1e6 for name, pid in self.pids.items()}
        return {name: round(value, 1) for name, value in found.items()} | {
            "together": round(proportional_bytes(self.process.pid) / 1e6, 1)
        }

    def wait_until_idle(self) -> bool:
        """Whether it lets all go that was not answered, within a while. Of llama.cpp's server nothing is known."""
        with contextlib.suppress(urllib.error.URLError, KeyError, ValueError, TimeoutError):
            return becomes_idle(self.port, looks=600)
        return False


def becomes_idle(port: int, *, looks: int) -> bool:
    """Whether a server of ours lets all go that it holds, within so many looks of 50 milliseconds."""
    for _ in range(looks):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as response:
            health = json.load(response)
        blocks = health["kv_blocks"]
        if not health["running"] and not health["waiting"] and blocks["free"] == blocks["total"] > 0:
            return True
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def our_server(name: str, model: Path, path: str, bodies: list[str], options: list[str]) -> Iterator[Server]:
    """`open-autoglm serve` with limits that let all users in."""
    command = [sys.executable, "-m", "open_autoglm", "serve", str(model), "--port", "0", "--max-queued", "100000"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        found = re.search(r":(\d+)/v1", line)
        if found is None:
            raise SystemExit(line + process.stderr.read().decode())
        with _drained(process):
            yield Server(name, int(found[1]), process, path, bodies)


@contextlib.contextmanager
def llama_server(name: str, command: list[str], path: str, bodies: list[str]) -> Iterator[Server]:
    """llama.cpp's server. command: how to start it, PORT standing for the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.replace("PORT", str(port)) for word in command]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        try:
            began = time.monotonic()
            while not _answers(port, path, bodies[0]):
                if process.poll() is not None or time.monotonic() - began > _PATIENCE:
                    log.seek(0)
                    raise SystemExit(f"{words[0]} did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.05)
            yield Server(name, port, process, path, bodies)
        finally:
            process.kill()


def served_checkpoint(shape: str, folder: Path) -> Path:
    """A random checkpoint of a shape with a tokenizer, so that it can be served."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from open_autoglm.bundle.huggingface import TOKENIZER_FILE, write_tokenizer
    from open_autoglm.chat.template import CONTROL_TOKENS

    target = ensure_checkpoint(shape, folder)
    if not (target / TOKENIZER_FILE).is_file():
        tokenizer = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(r"\s?\p{L}+|\p{N}|[^\p{L}\p{N}]"), "isolated")
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_of])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=SHAPES[shape].vocabulary,
            special_tokens=list(CONTROL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = (json.loads(line)["prompt"] for line in _COMMANDS.read_text(encoding="utf-8").splitlines())
        tokenizer.train_from_iterator(texts, trainer)
        write_tokenizer(tokenizer, target, max_length=SHAPES[shape].max_positions)
    return target


def llama_command(shape: str, folder: Path, *, python: str, binary: str | None, threads: int, slots: int) -> list[str]:
    """How to start llama.cpp's server on a shape in 8 bits, which is written unless it is there.

    python: an interpreter with gguf and, where there is no `binary` of llama-server, with llama_cpp.server.
    """
    path = folder / f"{shape}-Q8_0.gguf"
    if not path.is_file():
        subprocess.run([python, str(_PEERS / "write_gguf.py"), shape, "Q8_0", str(path)], check=True)
    if binary is not None:
        context = ["-c", str(256 * slots), "-np", str(slots), "-t", str(threads), "-tb", str(threads)]
        return [binary, "-m", str(path), "--port", "PORT", "--no-webui", *context]
    settings = ["--n_ctx", "2048", "--n_threads", str(threads), "--n_threads_batch", str(threads)]
    once = ["--interrupt_requests", "false"]  # else each request would end the one before it
    return [python, "-m", "llama_cpp.server", "--model", str(path), "--port", "PORT", *settings, *once]


@contextlib.contextmanager
def _drained(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Read what the process logs, so that it is not held up, and end it."""
    import threading

    assert process.stderr is not None
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int, path: str, body: str) -> bool:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as response:
            return bool(response.read())
    except OSError:
        return False


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
