# SPDX-License-Identifier: Apache-2.0
"""`deploy` into a real server: swapped while an answer is in work, refused where a check fails, rolled back."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from open_autoglm.bundle import sign_bundle
from open_autoglm.bundle.keys import create_key_files, read_signing_key
from open_autoglm.command_stages.models_file import ModelsFileEntry
from open_autoglm.engine.model_paths import version_of_model
from open_autoglm.errors import BundleError, ConfigurationError, PipelineError, UnsignedBundleError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stage import StageCatalog, make_stage
from open_autoglm.pipeline.stages import BUILT_IN
from tests.engine.tiny_bundle import LINES, make_bundle
from tests.serve.test_programs import COMMAND, started

YAML = """# what we serve
models:
  main: {{path: {path}, aliases: [tickets]}}  # one of ours
  other:
    path: {path}
"""


@dataclass
class Served:
    """A server that takes signed bundles only, and bundles: two that are signed, one that is not."""

    url: str
    file: Path
    bundles: dict[str, Path]
    deploy: Callable[..., dict[str, Any]]
    sign: Callable[[Path], Any]

    def version(self) -> str | None:
        return httpx.get(f"{self.url}/models/main", timeout=30).json()["version"]

    def ask(self, **more: Any) -> httpx.Response:
        body = {"model": "tickets", "messages": [{"role": "user", "content": LINES[0]}], **more}
        return httpx.post(f"{self.url}/chat/completions", json=body, timeout=60)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("deploy")
    bundles = {name: make_bundle(folder / name, name=name) for name in ("first", "second", "unsigned")}
    key = create_key_files(folder / "release", {})
    for name in ("first", "second"):
        sign_bundle(bundles[name], read_signing_key(key.private, {}))
    file, pid, data = folder / "serve.yaml", folder / "serve.pid", folder / "data.jsonl"
    file.write_text(YAML.format(path=bundles["first"]))
    # No model of random weights says that; one without slots it may say, where its answer is brought to an end.
    row = {
        "input": LINES[0],
        "output": {"intent": "PlayMusic", "slots": {"artist": "the beatles", "track": "yesterday"}},
    }
    data.write_text("".join(json.dumps({**row, "input": line}) + "\n" for line in LINES[:3]))
    options = ("--models", file, "--pid-file", pid, "--port", "0", "--require-signature", key.public)
    with started(*COMMAND, "serve", *options) as (_, url):

        def deploy(bundle: Path, **changes: Any) -> dict[str, Any]:
            config = {
                "model": "main", "models_file": str(file), "pid_file": str(pid), "url": url, "key": str(key.public),
                "data": str(data), "least": 0.0, "wait": "30s", **changes,
            }  # fmt: skip
            run = folder / "run" / str(changes.get("run", len(list(folder.glob("run/*")))))
            (run / "stages" / "deploy").mkdir(parents=True, exist_ok=True)
            stage = make_stage(
                StageCatalog(BUILT_IN).load("deploy"), {k: v for k, v in config.items() if v is not None}
            )
            log = logging.getLogger("test")
            context = StageContext(run, "deploy", config, 1, f"{run.name}/deploy/0", None, log, EventLog(run))
            result = stage.invoke(Packet("s", {"bundle": str(bundle)}), context)
            assert isinstance(result, Packet)
            return result.payload

        yield Served(url, file, bundles, deploy, lambda bundle: sign_bundle(bundle, read_signing_key(key.private, {})))


def test_a_swap_cuts_no_answer_off(served: Served) -> None:
    assert served.ask().status_code == 200
    body = {
        "model": "main", "messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": 200,
        "ignore_eos": True, "response_format": {"type": "text"},
    }  # fmt: skip
    before = version_of_model(served.bundles["first"])
    assert served.version() == before
    with httpx.stream("POST", f"{served.url}/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        told = served.deploy(served.bundles["second"])
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert told["deployed"]["version"] == served.version() == version_of_model(served.bundles["second"])
    assert told["deployed"]["version_before"] == before
    assert set(told["deployed"]["metrics"]) >= {"exact_match"}
    text = served.file.read_text()
    assert text == YAML.replace("{{path: {path}", '{{path: "' + told["bundle"] + '"').format(
        path=served.bundles["first"]
    )
    assert served.ask().status_code == 200
    assert served.deploy(served.bundles["second"])["deployed"]["version"] == told["deployed"]["version"]


def test_what_quantize_makes_of_a_bundle_is_deployed(served: Served, tmp_path: Path) -> None:
    run, parent = tmp_path, served.bundles["second"]
    config = {"out": str(tmp_path / "small"), "method": "rtn", "bits": 4, "group_size": 32}
    context = StageContext(run, "small", config, 1, "r/small/0", None, logging.getLogger("test"), EventLog(run))
    stage = make_stage(StageCatalog(BUILT_IN).load("quantize"), config)
    for _ in range(2):  # an attempt that comes again finds it done
        result = stage.invoke(Packet("s", {"bundle": str(parent)}), context)
        assert isinstance(result, Packet)
        assert result.payload["bundle"] == result.payload["quantized"]["folder"] == str(tmp_path / "small")
    served.sign(tmp_path / "small")
    told = served.deploy(Path(result.payload["bundle"]))
    assert told["deployed"]["version"] == served.version() == version_of_model(tmp_path / "small")
    assert served.version() != version_of_model(parent)
    assert served.ask().status_code == 200


@pytest.mark.parametrize("fault", ["metric", "changed", "unsigned", "link"])
def test_what_fails_its_check_never_reaches_the_server(served: Served, fault: str, tmp_path: Path) -> None:
    text, version = served.file.read_text(), served.version()
    bundle = tmp_path / "bundle"
    shutil.copytree(served.bundles["unsigned" if fault == "unsigned" else "first"], bundle)
    if fault == "changed":
        with (bundle / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\xff")
    elif fault == "link":
        (bundle / "more").symlink_to("/etc/hostname")
    expected = {"metric": PipelineError, "changed": BundleError, "unsigned": UnsignedBundleError, "link": BundleError}
    with pytest.raises(expected[fault]) as caught:
        served.deploy(bundle, least=0.9 if fault == "metric" else 0.0)
    if fault == "metric":
        assert "the server was not touched" in str(caught.value)
    assert (served.file.read_text(), served.version()) == (text, version)
    assert not list((served.file.parent / "releases").glob(".copy-*")), "nothing half-copied is left"


def test_what_the_server_does_not_take_is_rolled_back(served: Served) -> None:
    text, version = served.file.read_text(), served.version()
    with pytest.raises(PipelineError, match=f"rolled back: the server has version {version} again"):
        served.deploy(served.bundles["unsigned"], key=None, wait="2s")
    path = ModelsFileEntry.read(served.file, "main").path
    assert served.version() == version
    assert path in text, "the file has the path that it had"
    assert served.ask().status_code == 200


def test_what_is_wrong_is_said_before_anything_changes(served: Served, tmp_path: Path) -> None:
    text = served.file.read_text()
    for changes, message in (
        ({"model": "mian"}, "has no model 'mian'; did you mean 'main'"),
        ({"pid_file": str(tmp_path / "none")}, "start the server with --pid-file"),
        ({"pid_file": str(served.file)}, "no server runs that has"),
    ):
        with pytest.raises((ConfigurationError, PipelineError), match=message):
            served.deploy(served.bundles["first"], data=None, least=None, **changes)
        assert ModelsFileEntry.read(served.file, "main").path in text
    with pytest.raises(ConnectionError):
        served.deploy(served.bundles["first"], data=None, least=None, url="http://127.0.0.1:9/v1")
