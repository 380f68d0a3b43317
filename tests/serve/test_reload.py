# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: what a running server takes, what it says, and that no answer is cut off."""

import json
import signal
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.guards.guard_chain import Guards, settings_after_reload
from open_autoglm.serve.guards.guard_settings import AccessSettings, CacheSettings, ConnectionSettings, RateSettings
from open_autoglm.serve.guards.reload import reload
from open_autoglm.serve.settings import ServeSettings
from tests.serve.guarded import guarded
from tests.serve.test_api_keys import make
from tests.serve.test_programs import COMMAND, ask, started


def test_settings_are_split_into_those_that_change_and_those_that_wait() -> None:
    old = ServeSettings(port=1, connections=ConnectionSettings(max_headers=50))
    new = ServeSettings(
        port=2,
        rates=RateSettings(requests_per_minute=5),
        connections=ConnectionSettings(max_headers=60, request_timeout=5.0),
        cache=CacheSettings(cache="memory", cache_bytes=10),
    )
    merged, changed, waiting = settings_after_reload(old, new)
    assert changed == ["requests_per_minute", "request_timeout", "cache_bytes"]
    assert waiting == ["port", "max_headers", "cache"]
    assert merged == ServeSettings(
        port=1,
        rates=RateSettings(requests_per_minute=5),
        connections=ConnectionSettings(max_headers=50, request_timeout=5.0),
        cache=CacheSettings(cache_bytes=10),
    )


def test_a_reload_does_not_open_a_closed_server() -> None:
    with pytest.raises(ConfigurationError, match="last key"):
        Guards(ServeSettings(api_key="a")).reload(ServeSettings())


def test_new_limits_origins_and_keys_hold_for_the_next_request() -> None:
    with guarded(ServeSettings(port=0, api_key="old")) as server:
        assert server.chat(key="old").status_code == 200
        answer: list[httpx.Response] = []
        stream = threading.Thread(
            target=lambda: answer.append(server.chat({"stream": True, "num_events": 30, "seconds": 0.05}, key="old"))
        )
        stream.start()
        while len(server.answered) < 2:
            assert stream.is_alive()
        line = reload(
            server.guards,
            None,
            lambda: ServeSettings(
                port=9,
                api_key="new",
                rates=RateSettings(requests_per_minute=1),
                access=AccessSettings(cors_origin=("https://a.example",)),
                connections=ConnectionSettings(request_timeout=0.2),
            ),
        )
        assert "changed: api_key, cors_origin, requests_per_minute, request_timeout" in line
        assert "needs a restart: port" in line
        assert server.chat(key="old").status_code == 401
        first = server.chat(key="new", headers={"Origin": "https://a.example"})
        assert first.status_code == 200
        assert first.headers["access-control-allow-origin"] == "https://a.example"
        assert server.chat(key="new").status_code == 429
        stream.join()
        assert answer[0].status_code == 200
        assert answer[0].text.endswith("data: [DONE]\n\n"), "it began under the old key and the old time"


def test_gates_that_were_not_needed_stand_once_they_are() -> None:
    with guarded(ServeSettings(port=0)) as server:
        foreign = {"Host": "evil.example"}
        assert server.chat().status_code == 200
        assert server.chat(headers=foreign).json()["error"]["code"] == "host_not_allowed"
        reload(
            server.guards, None,
            lambda: ServeSettings(port=0, api_key="new", rates=RateSettings(address_requests_per_minute=3)),
        )  # fmt: skip
        assert server.chat().status_code == 401
        assert server.chat(key="new", headers=foreign).status_code == 200, "now the key tells who is there"
        assert server.chat(key="wrong").status_code == 401
        assert server.chat(key="new").status_code == 429


def test_settings_that_are_wrong_change_nothing(tmp_path: Path) -> None:
    with guarded(ServeSettings(port=0, api_key="k")) as server:

        def wrong() -> ServeSettings:
            return ServeSettings(api_key="new", access=AccessSettings(api_keys=str(tmp_path / "missing.json")))

        assert "stay as they were" in reload(server.guards, None, wrong)
        assert server.chat(key="k").status_code == 200
        assert server.chat(key="new").status_code == 401
        assert "nothing changed" in reload(server.guards, None, lambda: server.guards.settings)


def test_a_server_process_reloads_on_sighup_without_cutting_streams(extraction_bundle: Path, tmp_path: Path) -> None:
    keys, file = tmp_path / "keys.json", tmp_path / "serve.yaml"
    secret, _ = make(keys)
    file.write_text(f"port: 0\naccess:\n  api_keys: {keys}\n")
    headers = {"Authorization": f"Bearer {secret}"}
    body = {
        "messages": [{"role": "user", "content": "play the song"}], "response_format": {"type": "text"},
        "ignore_eos": True, "max_tokens": 200, "stream": True,
    }  # fmt: skip
    with started(*COMMAND, "serve", extraction_bundle, "--config", file) as (process, url):
        assert ask(url).status_code == 401
        with httpx.stream("POST", f"{url}/chat/completions", json=body, headers=headers, timeout=30) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            file.write_text(f"port: 1\naccess:\n  api_keys: {keys}\nrates:\n  requests_per_minute: 2\n")
            process.send_signal(signal.SIGHUP)
            told = said_by(process)
            assert "changed: requests_per_minute; needs a restart: port" in told
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        file.write_text("prot: 1\n")
        process.send_signal(signal.SIGHUP)
        assert "did you mean port?" in said_by(process)
        found = [httpx.get(f"{url}/models", headers=headers).status_code for _ in range(4)]
        assert found == [200, 200, 429, 429]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def said_by(process: subprocess.Popen[str]) -> str:
    """The next line of the log that tells of a reload; others tell of requests."""
    assert process.stderr is not None
    while True:
        event = str(json.loads(process.stderr.readline())["event"])
        if event.startswith("reload: "):
            return event
