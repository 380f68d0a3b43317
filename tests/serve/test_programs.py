# SPDX-License-Identifier: Apache-2.0
"""The real programs: serve, app.py and chat, started as users start them."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.settings import ServeSettings, open_socket
from tests.e2e.conftest import run_here

ROOT = Path(__file__).parent.parent.parent
COMMAND = (sys.executable, "-m", "open_autoglm")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT, **options
    )  # type: ignore[call-overload]


@contextmanager
def started(*command: str | Path, cwd: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and the URL that it says when it is ready."""
    process = subprocess.Popen(
        [*map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=ENVIRONMENT, cwd=cwd
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.search(r"ready: (http://\S+/v1) serves (\S+)", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def ask(url: str, **options: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "play the song"}], **options}
    return httpx.post(f"{url}/chat/completions", json=body, timeout=30)


def test_serve_answers_drains_on_sigterm_and_ends_cleanly(extraction_bundle: Path) -> None:
    options = ("--port", "0", "--served-model-name", "mine", "--max_num_seqs", "2", "--max-num-batched-tokens", "64")
    with started(*COMMAND, "serve", extraction_bundle, *options) as (process, url):
        assert httpx.get(f"{url}/models").json()["data"][0]["id"] == "mine"
        assert json.loads(ask(url, model="mine").json()["choices"][0]["message"]["content"])["intent"]
        answers: list[httpx.Response] = []
        free = {"response_format": {"type": "text"}, "ignore_eos": True, "max_tokens": 200}
        threads = [
            threading.Thread(
                target=lambda streamed: answers.append(ask(url, stream=streamed, **free)), args=(index % 2 == 0,)
            )
            for index in range(6)
        ]
        for thread in threads:
            thread.start()
        while (health := httpx.get(f"{url[:-3]}/health").json())["running"] + health["waiting"] + len(answers) < 6:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(30) == 0
    assert [answer.status_code for answer in answers] == [200] * 6
    whole = [
        answer.json()["usage"]["completion_tokens"] for answer in answers if "json" in answer.headers["content-type"]
    ]
    assert whole == [200] * 3
    streams = [answer.text for answer in answers if "event-stream" in answer.headers["content-type"]]
    assert len(streams) == 3
    assert all(text.endswith("data: [DONE]\n\n") and '"finish_reason":"length"' in text for text in streams)


def test_app_py_serves_a_model_by_name_with_int4(extraction_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "snips").mkdir(parents=True)
    (tmp_path / "runs" / "snips" / "bundle").symlink_to(extraction_bundle)
    command = (sys.executable, ROOT / "app.py", "--model", "snips", "--quantize", "int4", "--port", "0")
    with started(*command, cwd=tmp_path) as (_, url):
        answer = ask(url).json()
        assert json.loads(answer["choices"][0]["message"]["content"])["intent"]
        assert answer["model"] == "tiny"


def test_a_port_in_use_is_said_before_the_model_is_looked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_here("serve", "no-such-bundle", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_no_model_and_a_key_that_is_missing_are_clear(tmp_path: Path) -> None:
    done = run("serve", str(tmp_path), "--port", "0")
    assert done.returncode == 5
    assert "not a bundle" in done.stderr
    done = run_here("serve", str(tmp_path), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "--api-key" in done.stderr
    done = run_here("serve", str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--api-key", "k")
    assert done.returncode == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70_000}, "0 to 65535"),
        ({"api_key": ""}, "API key"),
        ({"api_key": "a b"}, "API key"),
        ({"served_model_name": " "}, "served-model-name"),
        ({"max_body": 0}, "limits"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ServeSettings(**options)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_address_needs_a_key_or_two_words(host: str) -> None:
    with pytest.raises(ConfigurationError, match="allow-unauthenticated"):
        open_socket(ServeSettings(host=host, port=0))
    for settings in (
        ServeSettings(host=host, port=0, api_key="k"),
        ServeSettings(host=host, port=0, allow_unauthenticated=True),
    ):
        try:
            open_socket(settings).close()
        except ConfigurationError as error:
            assert host == "::", error  # a machine without IPv6


@pytest.mark.parametrize("host", ["256.1.1.1", "no such host", "192.0.2.7"])
def test_a_host_that_is_not_ours_is_refused(host: str, free_port: Callable[[], int]) -> None:
    with pytest.raises(ConfigurationError, match="host"):
        open_socket(ServeSettings(host=host, port=free_port(), api_key="k"))


def test_chat_reads_lines_and_writes_json(extraction_bundle: Path) -> None:
    done = run("chat", str(extraction_bundle), "--json", input="play the song\n\n请播放《晴天》。\n")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["play the song", "请播放《晴天》。"]
    assert all(json.loads(row["answer"])["intent"] for row in rows)
    assert done.stderr == ""
    done = run("chat", str(extraction_bundle), input="x" * 30_000 + "\nplay\n")
    assert done.returncode == 2
    assert "the context is 256" in done.stderr
    assert json.loads(done.stdout)


def test_chat_on_a_terminal_prompts_and_ends_with_control_d(extraction_bundle: Path) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "chat", str(extraction_bundle)], stdin=child, stdout=child, stderr=child, env=ENVIRONMENT
    )
    os.close(child)
    shown = b""

    def wait_for(words: bytes, times: int = 1) -> None:
        nonlocal shown
        while shown.count(words) < times:
            shown += os.read(parent, 4096)

    wait_for(b"> ")
    os.write(parent, b"play the song\n")
    wait_for(b'"slots": {')
    wait_for(b"> ", 2)
    os.write(parent, b"\x04")
    assert process.wait(20) == 0
    os.close(parent)
    assert b"Ctrl-D ends" in shown
