# SPDX-License-Identifier: Apache-2.0
"""Plugins found, tried in a process of their own, switched on and off; faulty ones harm nobody else."""

from __future__ import annotations

import inspect
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from open_autoglm.cli import create_app
from open_autoglm.errors import ConfigurationError, OpenAutoGLMError
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stage import make_stage
from open_autoglm.plugins.discovery import plugin_in
from open_autoglm.plugins.interfaces import KINDS
from open_autoglm.plugins.probe import cache_folder, known_result, probe
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.plugins.scaffold import scaffold


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPEN_AUTOGLM_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("OPEN_AUTOGLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_plugin(name: str, code: str, kind: str = "cleaner", **more: str) -> Path:
    folder = Path("plugins") / name
    folder.mkdir(parents=True)
    values = {"name": name, "kind": kind, "version": "1.0", "entry": f"{name}:Plugin", **more}
    (folder / "plugin.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()))
    (folder / f"{name}.py").write_text(code)
    return folder


def command(*arguments: str) -> Any:
    result = CliRunner().invoke(create_app(), ["plugin", *arguments])
    if isinstance(result.exception, OpenAutoGLMError):
        raise result.exception
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout.splitlines()[-1]) if "--json" in arguments else result.stdout


def states() -> dict[str, str]:
    return {row["name"]: row["state"] for row in command("list", "--json")["plugins"]}


GOOD = "class Plugin:\n    def clean(self, text):\n        return text.strip()\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaffold_checks_well_and_its_tests_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scaffold(kind, "my_thing", Path("plugins"))
    result = probe(plugin_in(folder), behaviour=True)
    assert result.fault is None
    assert bool(result.tried) == (kind not in ("stage", "backend", "sink", "queue"))
    scratch = Path("scratch").resolve()
    scratch.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_thing", raising=False)
    tests = runpy.run_path(str(folder / "test_my_thing.py"))
    found = [value for name, value in tests.items() if name.startswith("test_")]
    assert found
    for test in found:
        test(*(scratch for name in inspect.signature(test).parameters if name == "tmp_path"))
    sys.modules.pop("my_thing")


def test_enable_list_disable() -> None:
    write_plugin("tidy", GOOD)
    assert states() == {"tidy": "new"}
    assert not cache_folder().exists(), "what nobody enabled is not run"
    with pytest.raises(ConfigurationError, match="no cleaner 'tidy' that is enabled"):
        PluginRegistry().load("cleaner", "tidy")
    assert "enabled" in command("enable", "tidy")
    assert states() == {"tidy": "enabled"}
    assert PluginRegistry().load("cleaner", "tidy")().clean(" a ") == "a"
    shown = command("list")
    assert all(word in shown for word in ("tidy", "cleaner", "1.0", str(Path("plugins/tidy").resolve()), "enabled"))
    command("disable", "tidy")
    assert states() == {"tidy": "disabled"}
    with pytest.raises(ConfigurationError, match="did you mean 'tidy'"):
        command("enable", "tydy")


def test_a_plugin_with_a_fault_is_named_and_the_others_work() -> None:
    faults = (
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "SystemExit"),
        ("import os\nos._exit(3)\n", "exit code 3"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "signal 11"),
        ("Plugin = 3\n", "its entry is a int"),
        ("class Plugin: pass\n", "has no method clean"),
        ("class Plugin:\n    def clean(self): return ''\n", "cannot be called with 1 arguments"),
        ("class Plugin:\n    def __init__(self, x): pass\n    def clean(self, text): return text\n", "TypeError"),
    )
    names = [f"bad{number}" for number in range(len(faults))]
    write_plugin("tidy", GOOD)
    for name, (code, _) in zip(names, faults, strict=True):
        write_plugin(name, code)
    command("enable", "tidy")
    for name, (_, message) in zip(names, faults, strict=True):
        with pytest.raises(ConfigurationError, match=message):
            command("enable", name)
    with pytest.raises(ConfigurationError, match=faults[0][1]):
        command("check", f"plugins/{names[0]}")
    assert states() == {**dict.fromkeys(names, "new"), "tidy": "enabled"}


def test_a_plugin_that_turns_bad_is_isolated() -> None:
    folder = write_plugin("tidy", GOOD)
    write_plugin("other", GOOD)
    command("enable", "tidy")
    command("enable", "other")
    (folder / "tidy.py").write_text("raise RuntimeError('broken now')\n")
    rows = {row["name"]: row for row in command("list", "--json")["plugins"]}
    assert rows["tidy"]["state"] == "faulty"
    where = folder.resolve()
    assert rows["tidy"]["reason"] == f"the cleaner 'tidy' in {where} cannot be loaded: RuntimeError: broken now"
    assert rows["other"]["state"] == "enabled"
    assert list(PluginRegistry().enabled("cleaner")) == ["other"]


def test_what_hangs_is_stopped_with_its_children() -> None:
    pid = Path("pid").resolve()
    code = (
        "import subprocess, time\nfrom pathlib import Path\n"
        f"Path({str(pid)!r}).write_text(str(subprocess.Popen(['sleep', '600']).pid))\ntime.sleep(600)\n"
    )
    plugin = plugin_in(write_plugin("slow", code))
    assert known_result(plugin, seconds=3).fault == "it did not answer within 3 s and was stopped"
    deadline = time.monotonic() + 10
    status = Path(f"/proc/{pid.read_text()}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert known_result(plugin, seconds=0.001).fault == "it did not answer within 3 s and was stopped", "remembered"


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("cleaner", "class Plugin:\n    def clean(self, text): return 7\n", "gave a int, not a text"),
        ("cleaner", "class Plugin:\n    def clean(self, text): return text + '!'\n", "again changes it"),
        (
            "quantizer",
            "class Plugin:\n    def quantize(self, weights, bits, size): return {'codes': weights}\n",
            "gave ['codes']",
        ),
        (
            "metric",
            "class Plugin:\n    higher_is_better = False\n    def score(self, a, b): return float(a == b)\n",
            "higher_is_better contradicts",
        ),
        ("tokenizer", "class Plugin:\n    def train(self, a, b): return '{}'\n", "no tokenizer.json"),
        ("tokenizer", "class Plugin:\n    def train(self, a, b): return b''\n", "gave a bytes"),
        ("sampler", "class Plugin:\n    def propose(self, a, b, c): return {'x': 1}\n", "values for ['x']"),
        ("protocol", "class Plugin:\n    def answer(self, a, b): return 'text'\n", "GET / "),
        (
            "protocol",
            "class Plugin:\n    def answer(self, a, b): return {'body': [1]}\n",
            "a piece of the body is a int",
        ),
        ("protocol", "class Plugin:\n    def answer(self, a, b): return {'body': {}}\n", "write it as JSON text"),
        ("protocol", "class Plugin:\n    def answer(self, a, b): return {'body': a['boby']}\n", "KeyError: 'boby'"),
        ("protocol", "class Plugin:\n    def answer(self, a, b): return {'body': ''}\n", "every answer was empty"),
        (
            "protocol",
            "class Plugin:\n    def answer(self, a, chat):\n"
            "        return {'body': (1 / 0 for _ in chat({'messages': [], 'stream': True}))}\n",
            "ZeroDivisionError",
        ),
    ],
)
def test_check_finds_what_does_not_do_what_its_kind_promises(kind: str, code: str, message: str) -> None:
    folder = write_plugin("odd", code, kind)
    assert message in str(probe(plugin_in(folder), behaviour=True).fault)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nkind: cleanr\nversion: '1'\nentry: a:B\n", r"line 2: kind: .*did you mean 'cleaner'"),
        ("name: X\nkind: cleaner\nversion: '1'\nentry: a:B\n", r"line 1: name: 'X' cannot name a plugin"),
        ("name: x\nkind: cleaner\nversion: '1'\nentry: ../a\n", r"line 4: entry: .*not of the form"),
        ("name: x\nkind: cleaner\nversion: '1'\nentri: a:B\n", "entr"),
        ("name: x\nkind: cleaner\nversion: '1'\n", "'entry' is missing"),
        ("- a\n", "names and values"),
    ],
)
def test_a_manifest_with_a_fault_is_named_by_line(text: str, message: str) -> None:
    folder = Path("plugins/x")
    folder.mkdir(parents=True)
    (folder / "plugin.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        command("check", "plugins/x")
    assert states() == {"x": "faulty"}


def test_versions_and_names_that_clash_are_faults() -> None:
    write_plugin("old", GOOD, compatible="<0.0.1")
    (Path("config/plugins")).mkdir(parents=True)
    write_plugin("tidy", GOOD).rename("config/plugins/tidy2")
    write_plugin("tidy", GOOD)
    rows = command("list", "--json")["plugins"]
    reasons = {row["path"]: str(row["reason"]) for row in rows if row["state"] == "faulty"}
    assert "made for Open-AutoGLM <0.0.1" in reasons[str(Path("plugins/old").resolve())]
    assert "of this name in" in reasons[str(Path("plugins/tidy").resolve())]


def test_a_package_offers_plugins_by_entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "offered-1.2.dist-info").mkdir(parents=True)
    (package / "offered_plugins.py").write_text(GOOD)
    (package / "offered-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.2\n")
    (package / "offered-1.2.dist-info/entry_points.txt").write_text(
        "[open_autoglm.plugins]\ncleaner.strip = offered_plugins:Plugin\nwhat.ever = offered_plugins:Plugin\n"
    )
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("PYTHONPATH", str(package) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    rows = {row["name"]: row for row in command("list", "--json")["plugins"]}
    assert (rows["strip"]["state"], rows["strip"]["version"], rows["strip"]["path"]) == (
        "enabled", "1.2", "package offered"
    )  # fmt: skip
    assert "no kind of plugin 'what'" in rows["ever"]["reason"]
    assert PluginRegistry().load("cleaner", "strip")().clean(" x ") == "x"


def test_no_plugins_are_said_in_a_sentence() -> None:
    shown = " ".join(command("list").split())
    assert "There are no plugins" in shown
    assert "open-autoglm plugin new KIND NAME" in shown


def test_the_stage_of_a_plugin_is_in_the_catalogue() -> None:
    scaffold("stage", "shout", Path("plugins"))
    assert "shout" not in default_catalog()
    command("enable", "shout")
    stage = make_stage(default_catalog().load("shout"), {"field": "a"})
    packet: Any = stage.invoke(Packet("s", {"records": [{"id": 1, "a": "x"}]}), None)  # pyright: ignore[reportArgumentType]
    assert packet.payload["records"] == [{"id": 1, "a": "X"}]
