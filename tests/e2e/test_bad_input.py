# SPDX-License-Identifier: Apache-2.0
"""What goes wrong gets one clear line, an exit code of its own, and no traceback."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import run_command, run_here

Run = Callable[..., subprocess.CompletedProcess[str]]


def fails(*arguments: str | Path, code: int, saying: str, run: Run = run_here) -> str:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert saying in done.stderr
    return done.stderr


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fails("build", tmp_path / "none.jsonl", "--out", out, code=3, saying="none.jsonl", run=run_command)
    fails("build", write(tmp_path / "empty.jsonl", ""), "--out", out, code=3, saying="empty")
    fails("data", write(tmp_path / "binary.csv", bytes(range(256)) * 8), code=3, saying="binary.csv")
    fails(
        "data",
        write(tmp_path / "bad.jsonl", '{"prompt": "a", "response": "b"}\n{"prompt": \n'),
        code=3,
        saying="line 2",
    )
    fails("data", write(tmp_path / "ragged.csv", "text,label\na,b\nc,d,e\n"), code=3, saying="line 3")


def test_words_that_are_not_known(small_snips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = small_snips / "train.jsonl"
    fails("build", train, "--out", out, "--task", "extracton", code=2, saying="extraction")
    fails("build", train, "--out", out, "--columns", "input=promt,output=response", code=2, saying="prompt")
    fails("data", train, "--columns", "input=promt output=response", code=2, saying="prompt")
    fails("build", train, "--out", out, "--target", "toaster", code=2, saying="toaster")
    fails("build", train, "--out", out, "--budget", "soon", code=2, saying="15m")
    fails("build", train, "--out", out, "--trials", "0", code=2, saying="--trials")
    fails("build", train, "--out", out, "--bugdet", "5m", code=2, saying="--bugdet")


def test_a_budget_too_small_says_what_would_do(small_snips: Path, tmp_path: Path) -> None:
    fails("build", small_snips, "--out", tmp_path / "run", "--budget", "3s", code=4, saying="--budget")


def test_what_is_not_a_bundle(built: tuple[Path, dict], tmp_path: Path) -> None:
    fails("inspect", tmp_path, code=5, saying="not a bundle")
    fails("serve", tmp_path, code=5, saying="")
    fails("chat", tmp_path / "nothing", code=5, saying="nothing")
    copy = tmp_path / "bundle"
    shutil.copytree(built[0] / "bundle", copy)
    weights = copy / "int8.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    for command in (["inspect", copy], ["eval", copy, built[0]], ["chat", copy]):
        fails(*command, code=5, saying="int8.safetensors")
    fails("serve", copy, code=5, saying="int8.safetensors", run=run_command)


def test_a_port_in_use_is_named(built: tuple[Path, dict]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stderr = fails("serve", built[0] / "bundle", "--port", port, code=2, saying=port, run=run_command)
    assert "--port" in stderr


def test_json_mode_gives_the_error_as_json_too(tmp_path: Path) -> None:
    done = run_command("inspect", tmp_path, "--json")
    assert done.returncode == 5
    assert json.loads(done.stdout.strip().splitlines()[-1])["error"]["type"] == "BundleError"


def test_help_has_an_example_for_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("build", "data", "eval", "chat", "serve", "inspect", "doctor"):
        done = run_here(command, "--help")
        assert done.returncode == 0
        assert f"open-autoglm {command}" in done.stdout
        assert "xample" in done.stdout
