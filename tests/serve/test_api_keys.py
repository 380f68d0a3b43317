# SPDX-License-Identifier: Apache-2.0
"""Keys: what the file keeps, what a key opens, and that changes are seen at once."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_autoglm.errors import ConfigurationError, OpenAutoGLMError
from open_autoglm.serve.guards.api_keys import (
    SCOPES,
    ApiKey,
    KeyLimits,
    create_key,
    edit_keys,
    read_keys,
    revoke_key,
    write_keys,
)
from open_autoglm.serve.guards.authentication import KeyRing, scope_of
from open_autoglm.serve.guards.guard_settings import AccessSettings
from open_autoglm.serve.settings import ServeSettings, open_socket
from tests.serve.guarded import guarded

NOW = 1_800_000_000


def make(path: Path, name: str = "alice", **options: Any) -> tuple[str, ApiKey]:
    """Add a key to a file."""
    made: list[tuple[str, ApiKey]] = []

    def add(keys: tuple[ApiKey, ...]) -> list[ApiKey]:
        made.append(create_key(keys, name, time.time(), **options))
        return [*keys, made[0][1]]

    edit_keys(path, add)
    return made[0]


def settings_with(path: Path, **options: Any) -> ServeSettings:
    return ServeSettings(port=0, access=AccessSettings(api_keys=str(path)), **options)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "open_autoglm", "keys", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_file_keeps_everything_but_the_key(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.json"
    secret, key = make(path, models=["a", "b"], days=2, scopes=["chat"], limits=KeyLimits(tokens_per_day=7))
    assert len(secret) > 43
    assert secret not in path.read_text()
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert read_keys(path) == (key,)
    assert key.models == ("a", "b")
    assert key.expires == pytest.approx(time.time() + 2 * 86_400, abs=5)
    secrets_made = {create_key((), "x", NOW)[0] for _ in range(100)}
    assert len(secrets_made) == 100


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a key file"),
        ('{"version": 2, "keys": []}', "not a key file"),
        ('{"version": 1, "keys": [7]}', "key 1 is not an object"),
        ('{"version": 1, "keys": [{"id": "a", "name": "b"}]}', "key 1: sha256"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_fault(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=words):
        read_keys(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scopes": ["everything"]}, "no scope 'everything'"),
        ({"scopes": []}, "scopes must be"),
        ({"models": []}, "models must be"),
        ({"expires": "tomorrow"}, "expires"),
        ({"expires": 10**30}, "further away"),
        ({"limits": {"tokens": 3}}, "no limit 'tokens'"),
        ({"limits": {"tokens_per_day": 0}}, "would refuse everything"),
        ({"limits": {"tokens_per_day": True}}, "whole number"),
        ({"sha256": "A" * 64}, "sha256"),
        ({"name": " "}, "name"),
        ({"created": None}, "created"),
        ({"colour": "red"}, "unknown field 'colour'"),
    ],
)
def test_an_entry_that_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "keys.json"
    make(path)
    value = json.loads(path.read_text())
    value["keys"][0] |= changes
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigurationError, match=words):
        read_keys(path)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make(path)
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            read_keys(path)


def test_two_programs_that_add_keys_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=make, args=(path, f"name-{index}")) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(path)} == {f"name-{index}" for index in range(20)}


def test_revoking_needs_one_key() -> None:
    first, second = create_key((), "a", NOW)[1], create_key((), "a", NOW)[1]
    assert revoke_key((first, second), second.id) == ((first,), second)
    with pytest.raises(ConfigurationError, match=f"{first.id}, {second.id}"):
        revoke_key((first, second), "a")
    with pytest.raises(ConfigurationError, match="no key"):
        revoke_key((first,), "b")


def test_the_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    made = run("create", "alice", "--file", path, "--scope", "chat", "--tokens-per-day", "1000", "--json")
    assert made.returncode == 0, made.stderr
    value = json.loads(made.stdout.splitlines()[-1])
    assert value["name"] == "alice"
    assert value["scopes"] == ["chat"]
    assert "sha256" not in value
    told = run("create", "bob", "--file", path)
    secret = told.stdout.split()[0]
    ring = KeyRing(None, Path(path))
    assert {ring.find([f"Bearer {item}".encode()]).id for item in (value["key"], secret)} == {  # type: ignore[union-attr]
        key.id for key in read_keys(Path(path))
    }
    listed = run("list", "--file", path)
    assert "alice" in listed.stdout
    assert value["key"] not in listed.stdout
    assert [key["name"] for key in json.loads(run("list", "--file", path, "--json").stdout)["keys"]] == ["alice", "bob"]
    assert run("revoke", "alice", "--file", path).returncode == 0
    assert [key.name for key in read_keys(Path(path))] == ["bob"]
    failed = run("revoke", "alice", "--file", path)
    assert failed.returncode == 2
    assert "no key" in failed.stderr
    failed = run("create", "x", "--file", path, "--scope", "all")
    assert failed.returncode == 2
    assert "scopes are" in failed.stderr


def test_a_ring_finds_the_right_key_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made = [make(path, f"name-{index}") for index in range(3)]
    expired, _ = make(path, "old", days=0.001)
    keys = read_keys(path)
    write_keys(path, [*keys[:3], replace(keys[3], expires=int(time.time()) - 1)])
    ring = KeyRing("operator", path)
    for secret, key in made:
        for scheme in ("Bearer", "bearer", "BEARER"):
            found = ring.find([f"{scheme} {secret}".encode()])
            assert found is not None
            assert found.id == key.id
    operator = ring.find([b"Bearer operator"])
    assert operator is not None
    assert operator.scopes == frozenset(SCOPES)
    secret = made[0][0]
    wrong = [[], [b""], [b"Bearer"], [b"Bearer "], [secret.encode()], [f"Basic {secret}".encode()]]
    wrong += [[f"Bearer {secret}x".encode()], [f"Bearer  {secret}".encode()], [f"Bearer {made[0][1].sha256}".encode()]]
    wrong += [[f"Bearer {secret}".encode()] * 2, [b"Bearer \xff\xfe"], [f"Bearer {expired}".encode()]]
    wrong += [[b"Bearer " + b"-" * 64]]
    for headers in wrong:
        assert ring.find(headers) is None, headers
    assert KeyRing(None, path).find([b"Bearer " + b"-" * 64]) is None


def test_a_ring_sees_changes_and_outlives_a_broken_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    path = tmp_path / "keys.json"
    first, key = make(path, "first")
    ring = KeyRing(None, path, clock=lambda: now)
    second, _ = make(path, "second")
    assert ring.find([f"Bearer {second}".encode()]) is None, "a second has not passed"
    now = 1.5
    assert ring.find([f"Bearer {second}".encode()]) is not None
    path.write_text("{")
    now = 3.0
    assert ring.find([f"Bearer {first}".encode()]) is not None
    assert "stay as they were" in caplog.text
    path.unlink()
    now = 4.5
    assert ring.find([f"Bearer {first}".encode()]) is not None
    write_keys(path, [key])
    now = 6.0
    assert ring.find([f"Bearer {second}".encode()]) is None
    assert ring.find([f"Bearer {first}".encode()]) is not None


def test_a_key_opens_the_routes_of_its_scopes_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    talker, _ = make(path, "talker", scopes=["chat"])
    watcher, _ = make(path, "watcher", scopes=["metrics"])
    administrator, _ = make(path, "administrator", scopes=list(SCOPES))
    with guarded(settings_with(path)) as server:
        assert server.chat(key=talker).status_code == 200
        refused = server.chat(key=watcher)
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "missing_scope"
        assert "'chat'" in refused.json()["error"]["message"]
        for path_, key, status in (
            ("/metrics", watcher, 200),
            ("/metrics", talker, 403),
            ("/v1/models", talker, 403),
            ("/v1/modelsx", administrator, 404),
            ("/nothing", talker, 403),
            ("/nothing", administrator, 404),
            ("/v1/models", administrator, 200),
        ):
            response = server.get(path_, headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == status, (path_, status)


def test_no_method_and_no_path_goes_round_the_gate(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make(path)
    with guarded(settings_with(path)) as server, httpx.Client() as client:
        paths = ("/v1/models", "/v1/chat/completions", "/metrics", "/nothing", "//health", "/health/", "/%2e/health")
        paths += ("/health%00", "/HEALTH", "/health;x")
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "PROPFIND"):
            for item in paths:
                target = httpx.URL(server.url).copy_with(raw_path=item.encode())
                response = client.request(method, target, headers={"Access-Control-Request-Method": "POST"})
                assert response.status_code == 401, (method, item)
            if method not in ("GET", "HEAD"):
                for item in ("/health", "/"):
                    assert server.client.request(method, item).status_code == 401, (method, item)
        for item in (b"/v1/../health", b"/./health", b"http://localhost/v1/models", b"*", b"//localhost/health"):
            answer = server.raw(b"GET " + item + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 401"), item
        assert server.get("/health").status_code == 200
        assert server.get("/").status_code == 200
        assert server.answered == []


def test_a_key_may_be_for_some_models_only(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, _ = make(path, models=["small"])
    with guarded(settings_with(path)) as server:
        assert server.chat({"model": "small"}, key=secret).status_code == 200
        for body in ({"model": "large"}, {"model": None}, {"model": ["small"]}, {"model": "Small"}):
            response = server.chat(body, key=secret)
            assert response.status_code == 403, body
            assert response.json()["error"]["code"] == "model_not_allowed"
        twice = b'{"model": "small", "model": "large"}'
        headers = {"Authorization": f"Bearer {secret}"}
        response = httpx.post(f"{server.url}/v1/chat/completions", content=twice, headers=headers)
        assert response.status_code == 403
        assert len(server.answered) == 1


def test_a_new_key_opens_at_once_and_a_revoked_one_not_for_long(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, key = make(path, "first")
    with guarded(settings_with(path)) as server:
        assert server.chat(key=first).status_code == 200
        second, _ = make(path, "second")
        edit_keys(path, lambda keys: revoke_key(keys, key.id)[0])
        wait_until(lambda: server.chat(key=second).status_code == 200)
        assert server.chat(key=first).status_code == 401


def wait_until(condition: Any) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to be within ten seconds")


def test_a_key_file_counts_as_a_key_for_an_open_address(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make(path)
    open_socket(settings_with(path, host="0.0.0.0")).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    make(path)
    path.chmod(0)
    with pytest.raises(OpenAutoGLMError, match="permission"):
        read_keys(path)


def test_every_route_has_a_known_scope() -> None:
    routes = {"/v1/chat/completions": "chat", "/v1/completions": "chat", "/v1/embeddings": "embed"}
    routes |= {"/v1/models": "models", "/v1/models/x/y": "models", "/tokenize": "tokenize", "/detokenize": "tokenize"}
    routes |= {"/v1/classify": "classify", "/metrics": "metrics", "/v1/completionsx": "admin", "/": "admin"}
    assert {path: scope_of(path) for path in routes} == routes
