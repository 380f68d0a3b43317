# SPDX-License-Identifier: Apache-2.0
"""A built bundle behind HTTP: the official client, streamed and whole, and an orderly end."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI

from tests.e2e.conftest import environment, run_command

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def serving(*command: str | Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server process on a free port; its base URL and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--port", str(port)], env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        base = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"{base}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield base, process
    finally:
        process.kill()
        process.wait()


def test_the_official_client_gets_the_same_answer_whole_and_streamed(built: tuple[Path, dict]) -> None:
    with serving("-m", "open_autoglm", "serve", built[0] / "bundle") as (base, process):
        client = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        (model,) = client.models.list().data
        assert model.id == "small"
        ask = {"model": model.id, "messages": [{"role": "user", "content": "play music by björk"}], "max_tokens": 200}
        whole = client.chat.completions.create(**ask)
        pieces = [
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**ask, stream=True)
            if chunk.choices
        ]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len(pieces) >= 3  # what comes while the reader is behind, comes together
        if whole.choices[0].finish_reason == "stop":
            assert set(json.loads(whole.choices[0].message.content)) == {"intent", "slots"}
        choice = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["one", "two"]}}}
        other = client.chat.completions.create(**ask, response_format=choice)
        assert json.loads(other.choices[0].message.content) in ("one", "two")
        with pytest.raises(NotFoundError):
            client.chat.completions.create(**{**ask, "model": "another"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_app_serves_a_quantised_model_under_its_old_name(built: tuple[Path, dict]) -> None:
    command = [ROOT / "app.py", "--model", built[0] / "bundle", "--quantize", "int4"]
    with serving(*command) as (base, _):
        client = OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
        answer = client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "rate this book five"}], max_tokens=64
        )
        assert answer.choices[0].message.content.startswith('{"intent": "')


def test_chat_answers_each_line_of_a_pipe(built: tuple[Path, dict]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "open_autoglm", "chat", str(built[0] / "bundle"), "--json"],
        input="play music\nwhat is the weather in 北京\n", capture_output=True, text=True, check=False,
        env=environment(), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.strip().splitlines()]) == 2


@pytest.mark.thorough
def test_a_build_goes_on_from_a_checkpoint(built: tuple[Path, dict], small_snips: Path, tmp_path: Path) -> None:
    base, out = built[0] / "bundle", tmp_path / "tuned"
    done = run_command("build", small_snips, "--out", out, "--base", base, "--steps", "27", "--trials", "1")
    assert done.returncode == 0, done.stderr
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (out / "bundle", base))
    assert config == before
    assert (out / "bundle" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()

    def losses(folder: Path) -> list[float]:
        entries = json.loads((folder / "leaderboard.json").read_text())["entries"]
        return [entry["valid_loss"] for entry in entries if entry["kind"] == "final"]

    assert losses(out)[0] < losses(built[0])[0]
