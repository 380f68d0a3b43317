# SPDX-License-Identifier: Apache-2.0
"""What the command line says about models, and what is refused before anything starts."""

import json
import subprocess
from contextlib import chdir
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.launch import LaunchPlan
from tests.e2e.conftest import run_here
from tests.serve.process_tools import COMMAND, ENVIRONMENT, server, wait_until


def test_a_plan_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="--models"):
        LaunchPlan()
    with pytest.raises(ConfigurationError, match="--in-process"):
        LaunchPlan(("a", "b"), in_process=True)


def test_one_model_needs_no_pool_and_a_folder_may_have_a_sign(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert LaunchPlan(("runs/x",)).is_single
    assert LaunchPlan((str(tmp_path / "a=b"),)).is_single
    assert not LaunchPlan(("name=runs/x",)).is_single
    assert not LaunchPlan(("x", "y")).is_single
    assert not LaunchPlan(("x",), models_file=Path("f")).is_single


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("a", "--models", "no-such.yaml"), 5, "there is no model 'a'"),
        (("--models", "no-such.yaml"), 2, "cannot read no-such.yaml"),
        (("x=a", "--memory-limit", "many"), 2, "not an amount of memory"),
        (("x=a", "x=b"), 2, "two models are called 'x'"),
        (("x=a", "--served-model-name", "y"), 2, "NAME=PATH"),
        (("x=a", "--preload"), 10, "the model 'x' cannot be loaded: there is no model 'a'"),
    ],
)
def test_the_command_says_what_is_wrong(words: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    with chdir(tmp_path):
        done = run_here("serve", *words, "--port", "0")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_keys_and_several_models_hold_together(extraction_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        f"""
models:
  one: {{path: {extraction_bundle}, aliases: [first], threads: 1}}
  two: {{path: {extraction_bundle}, threads: 1}}
router:
  routes:
    quick: {{models: [one, two]}}
"""
    )
    (tmp_path / "serve.yaml").write_text("access: {api_keys: keys.json}\ncache: {cache: memory}\n")
    made = subprocess.run(
        [*COMMAND, "keys", "create", "alice", "--file", "keys.json", "--model", "one", "--model", "quick",
         "--scope", "chat", "--tokens-per-day", "1000", "--json"],
        capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=True,
    )  # fmt: skip
    key = json.loads(made.stdout.splitlines()[-1])["key"]
    words = ("--models", "models.yaml", "--config", "serve.yaml", "--preload", "--max-loaded", "2")
    with server(*words, cwd=tmp_path) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        states = httpx.get(running.url.removesuffix("v1") + "ready", timeout=30).json()["models"]
        assert [states[name]["state"] for name in ("one", "two")] == ["ready", "ready"]

        def ask(path: str = "/chat/completions", **body: Any) -> httpx.Response:
            messages = [{"role": "user", "content": "play the song"}]
            value = {"model": "one", "messages": messages, "max_tokens": 4, **body}
            return client.post(path, json=value, headers={"Authorization": f"Bearer {key}"})

        assert client.post("/chat/completions", json={}).status_code == 401
        assert ask(model="two").status_code == 403
        assert ask("/embeddings").status_code == 403
        first, again = ask(), ask()
        assert [answer.headers.get("x-cache") for answer in (first, again)] == ["miss", "hit"]
        assert first.content == again.content
        routed = ask(model="quick")
        assert routed.status_code == 200
        assert "x-cache" not in routed.headers

        streamed = ask(model="quick", stream=True, stream_options={"include_usage": True}).text
        events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        used = [answer.json()["usage"]["total_tokens"] for answer in (first, routed)]
        used.append(events[-1]["usage"]["total_tokens"])

        def remaining() -> int:
            return int(ask(model="two").headers["x-ratelimit-remaining-tokens"])  # which is refused, and costs nothing

        wait_until(lambda: remaining() == 1000 - sum(used))
