# SPDX-License-Identifier: Apache-2.0
"""Settings from a file, the environment and flags: which is stronger, and what is said about those that are wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from open_autoglm.errors import ConfigurationError, OpenAutoGLMError
from open_autoglm.serve.configuration import VARIABLE_PREFIX, Configuration, configure
from open_autoglm.serve.guards.guard_settings import AccessSettings, ConnectionSettings, RateSettings
from open_autoglm.serve.option_fields import options_of
from open_autoglm.serve.settings import ServeSettings
from open_autoglm.serve.watching.watch_settings import WatchSettings

FILE = """\
# comment
host: 127.0.0.1
port: 8001
rates:
  requests_per_minute: 60
  tokens_per_minute: null
access:
  cors_origin:
    - https://a.example
    - https://b.example
  allowed_host: x.example
connections: {request_timeout: 30}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "serve.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_file_is_read_into_the_settings(tmp_path: Path) -> None:
    assert configure(write(tmp_path, FILE), {}).settings == ServeSettings(
        host="127.0.0.1",
        port=8001,
        rates=RateSettings(requests_per_minute=60),
        access=AccessSettings(cors_origin=("https://a.example", "https://b.example"), allowed_host=("x.example",)),
        connections=ConnectionSettings(request_timeout=30.0),
    )
    assert configure(None, {}).settings == ServeSettings()
    for empty in ("", "# nothing\n", "---\n", "rates:\n"):
        assert configure(write(tmp_path, empty), {}).settings == ServeSettings()


def test_flags_are_stronger_than_the_environment_and_that_than_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "port: 1\nhost: localhost\nmax_body: 10\nmax_choices: 2\n")
    environment = {
        "OPEN_AUTOGLM_SERVE_PORT": "2",
        "OPEN_AUTOGLM_SERVE_MAX_BODY": "20",
        "HOME": "/",
        "OPEN_AUTOGLM_CACHE": "x",
    }
    found = configure(file, environment, {"port": 3})
    assert (found.settings.port, found.settings.max_body, found.settings.max_choices) == (3, 20, 2)
    shown = found.as_yaml()
    lines = {line.split(":")[0].strip(): line for line in shown.splitlines()}
    assert lines["port"].endswith("# --port")
    assert lines["max_body"].endswith("# OPEN_AUTOGLM_SERVE_MAX_BODY")
    assert lines["max_choices"].endswith(f"# {file}:4")
    assert lines["max_queued"].endswith("# default")


def test_what_is_printed_can_be_read_again_and_shows_no_secret(tmp_path: Path) -> None:
    environment = {"OPEN_AUTOGLM_API_KEY": "hunter2", "OPEN_AUTOGLM_SERVE_CACHE": "redis://me:hunter2@h:1/0"}
    found = configure(write(tmp_path, FILE), environment)
    assert found.settings.api_key == "hunter2"
    shown = found.as_yaml()
    assert "hunter2" not in shown
    assert '"***"' in shown
    assert "redis://***@h:1/0" in shown
    value = yaml.safe_load(shown)
    assert value["rates"]["requests_per_minute"] == 60
    again = configure(write(tmp_path, configure(write(tmp_path, FILE), {}).as_yaml()), {})
    assert again.settings == configure(write(tmp_path, FILE), {}).settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot: 1", r"serve.yaml:1: there is no setting prot; did you mean port\?"),
        (
            "host: a\n\nrates:\n  request_per_minute: 1",
            r":4: .*rates.request_per_minute; did you mean requests_per_minute\?",
        ),
        ("cors_origin: x", r":1: .*it belongs to access.cors_origin"),
        ("zzz: 1", "there are .*port"),
        ("port: x", ":1: port must be a whole number, not x"),
        ("port: 1.5", "whole number"),
        ("port: true", "whole number"),
        ("port: 1e400", "whole number"),
        ("port: .nan", "whole number"),
        ("port: [1]", "takes one value"),
        ("port: {a: 1}", "takes one value"),
        ("port:", "port needs a value"),
        ("port: 1\nport: 2", ":2: port is given twice"),
        ("host: 5", "host must be text"),
        ("host: 2020-01-01", "takes text or a number"),
        ("allow_unauthenticated: maybe", "true or false"),
        ("access:\n  cors_origin: [[a]]", "list of texts"),
        ("access:\n  cors_origin: 5", "list of texts"),
        ("access: 5", ":1: the section access must be lines"),
        ("access:\n  - a", ":2: the section access must be lines"),
        ("- a", "the file must be lines"),
        ("just words", "the file must be lines"),
        ("a: [", "not valid YAML"),
        ("a: b: c", ":1: this is not valid YAML"),
        ("? [a]\n: 1", "there is no setting"),
        ("a: &a [x]\nb: *a", "anchors and aliases"),
        ("<<: {port: 1}", "there is no setting <<"),
        ("port: !!python/object/apply:os.system [id]", "takes one value"),
        ("host: !!python/name:os.system x", "is not a value"),
        ("port: 99999", "99999 is not a port"),
        ("max_body: 0", "at least 1"),
        ("[" * 10_000, "YAML"),
        (b"\xff\xfe\x00", "UTF-8|YAML"),
        ("host: \x00", "YAML"),
        ("x" * 1_100_000, "larger than"),
        ("port: 1\n---\nport: 2", "YAML"),
    ],
    ids=lambda item: repr(item)[:40],
)
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        configure(write(tmp_path, text), {})
    assert len(str(caught.value)) < 600


def test_an_alias_bomb_is_refused_before_it_grows(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{index}: &a{index} [{', '.join([f'*a{index - 1}'] * 10)}]" for index in range(1, 12)]
    with pytest.raises(ConfigurationError, match="aliases"):
        configure(write(tmp_path, "\n".join(lines)), {})


def test_a_file_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(OpenAutoGLMError, match="no such file"):
        configure(tmp_path / "missing.yaml", {})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("PROT", "1", r"OPEN_AUTOGLM_SERVE_PROT; did you mean OPEN_AUTOGLM_SERVE_PORT\?"),
        ("PORT", "x", "OPEN_AUTOGLM_SERVE_PORT: port must be a whole number"),
        ("PORT", "", "OPEN_AUTOGLM_SERVE_PORT: port needs a value"),
        ("DRAIN_SECONDS", "inf", "at least"),
        ("ALLOW_UNAUTHENTICATED", "perhaps", "true or false"),
    ],
)
def test_a_variable_that_is_wrong_is_named(name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        configure(None, {VARIABLE_PREFIX + name: value})


def test_variables_are_read_in_every_type() -> None:
    environment = {
        "PORT": "8_080",
        "DRAIN_SECONDS": "2.5",
        "ALLOW_UNAUTHENTICATED": "Yes",
        "CORS_ORIGIN": "https://a.example, https://b.example",
        "TOKENS_PER_DAY": "none",
        "SERVED_MODEL_NAME": "123",
    }
    found = configure(None, {VARIABLE_PREFIX + name: value for name, value in environment.items()}).settings
    assert (found.port, found.drain_seconds, found.allow_unauthenticated) == (8080, 2.5, True)
    assert found.access.cors_origin == ("https://a.example", "https://b.example")
    assert found.rates.tokens_per_day is None
    assert found.served_model_name == "123"


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=60)
    | st.sampled_from(["port: ", "rates:\n  ", "access:\n  cors_origin: "]).flatmap(
        lambda head: st.text(max_size=20).map(lambda tail: head + tail)
    )
)
def test_no_file_ends_in_a_traceback(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), text.encode("utf-8", "surrogatepass"))
        try:
            configure(path, {})
        except OpenAutoGLMError as error:
            assert str(path) in str(error) or "--" in str(error) or "limits" in str(error) or "key" in str(error)


def test_names_are_unique_and_described() -> None:
    options = list(options_of(ServeSettings))
    assert len({item.name for item in options}) == len(options) > 30
    assert all(item.help.endswith(".") or item.help.endswith("`.") or len(item.help) > 10 for item in options)
    assert {item.kind for item in options} <= {str, int, float, bool, tuple}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "open_autoglm", "serve", *arguments],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_prints_what_holds(tmp_path: Path) -> None:
    file = write(tmp_path, FILE)
    done = run(
        "--config", str(file), "--print-config", "--max-queued", "7", "--cors-origin", "https://c.example",
        "--no-allow-unauthenticated", OPEN_AUTOGLM_API_KEY="hunter2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = yaml.safe_load(done.stdout)
    assert value["port"] == 8001
    assert value["max_queued"] == 7
    assert value["access"]["cors_origin"] == ["https://c.example"]
    assert value["api_key"] == "***"
    assert "hunter2" not in done.stdout
    assert "# --max-queued" in done.stdout
    assert done.stdout.startswith("# without a key answer, to GET and HEAD: /health /ready / /playground/*\n")
    opened = Configuration(ServeSettings(watching=WatchSettings(metrics_public=True))).as_yaml()
    assert opened.startswith("# without a key answer, to GET and HEAD: /health /ready / /playground/* /metrics\n")


def test_every_setting_is_a_flag_with_help() -> None:
    done = run("--help", COLUMNS="200", TERM="dumb")
    assert done.returncode == 0, done.stderr
    for item in options_of(ServeSettings):
        assert item.flag in done.stdout, item.flag


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "70000 is not a port"),
        (("--cors-origin", "*", "--cors-credentials"), "cors-credentials"),
        (("--tls-key", "x"), "--tls-certificate"),
        (("--config", "missing.yaml"), "missing.yaml"),
        ((), "give a model"),
        (("x", "--api-keys", "missing.json", "--port", "0"), "missing.json"),
        (("x", "--tls-key", "missing", "--tls-certificate", "missing"), "--tls-certificate: there is no file"),
    ],
)
def test_flags_that_are_wrong_are_one_clear_line(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.returncode in (2, 6)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
