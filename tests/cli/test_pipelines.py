# SPDX-License-Identifier: Apache-2.0
"""The commands about pipelines, with stages of a package that is installed as a plugin's would be."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from open_autoglm.cli import create_app
from open_autoglm.errors import ConfigurationError, OpenAutoGLMError, PipelineError, SpecificationError

STAGES = """
from open_autoglm.pipeline.stage import Packet, StageContext

def add(packet, context):
    context.log.info("adding %s", context.config["what"])
    return packet.with_payload({**packet.payload, context.stage: context.config["what"]})

def fail(packet, context):
    if context.attempt < 2:
        raise ValueError("not yet")
    return packet
"""
PIPELINE = """\
name: sums
pipeline:
- {stage: first, module: test_add, config: {what: 1}}
- {stage: second, module: test_add, config: {what: 2}, needs: [first]}
- {stage: third, module: test_add, config: {what: "<3>"}, needs: [first], when: payload.first == 1}
"""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    return create_app()


@pytest.fixture
def command(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process; gives its last line as JSON, or all of its output."""
    package = tmp_path / "package"
    (package / "test_plugin-1.0.dist-info").mkdir(parents=True)
    (package / "plugin_stages_for_cli.py").write_text(STAGES)
    (package / "test_plugin-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: test-plugin\nVersion: 1.0\n"
    )
    (package / "test_plugin-1.0.dist-info/entry_points.txt").write_text(
        "[open_autoglm.stages]\ntest_add = plugin_stages_for_cli:add\ntest_fail = plugin_stages_for_cli:fail\n"
    )
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "sums.yaml").write_text(PIPELINE)

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(app, arguments)
        if isinstance(result.exception, OpenAutoGLMError):
            raise result.exception
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout.splitlines()[-1]) if "--json" in arguments else result.stdout

    return run


def test_run_shows_and_lists(command: Run, tmp_path: Path) -> None:
    ran = command("run", "sums.yaml", "--input", '{"x": 0}', "--set", "second.config.what=[5]", "--json")
    assert (ran["state"], ran["pipeline"]) == ("done", "sums")
    assert ran["payload"]["second"] == {"x": 0, "first": 1, "second": [5]}
    assert ran["payload"]["third"]["third"] == "<3>"
    assert [one["run"] for one in command("runs", "--json")["runs"]] == [ran["run"]]
    shown = command("show", ran["run"][:6], "--json")
    assert {name: stage["state"] for name, stage in shown["stages"].items()} == dict.fromkeys(
        ("first", "second", "third"), "done"
    )
    assert [one["state"] for one in shown["transitions"] if one["stage"] == "second"] == ["waiting", "running", "done"]
    text = command("show", ran["run"], "--logs")
    assert "adding 1" in text
    live = command("show", ran["run"], "--follow", "--logs")
    assert any(line.startswith("first: ") and line.endswith("adding 1") for line in live.splitlines())
    assert (tmp_path / "runs/pipelines/pipelines.sqlite").exists()
    assert ran["run"] in command("runs")
    again = command("run", "sums.yaml", "--key", "k", "--detach", "--json")
    assert command("run", "sums.yaml", "--key", "k", "--detach", "--json")["run"] == again["run"]
    assert command("runs", "--state", "waiting", "--json")["runs"][0]["run"] == again["run"]
    with pytest.raises(ConfigurationError, match="--state 'dnoe' is unknown; did you mean 'done'"):
        command("runs", "--state", "dnoe")


def test_a_failure_says_how_to_go_on(command: Run, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("name: f\npipeline:\n- {stage: a, module: test_fail}\n")
    with pytest.raises(PipelineError, match=r"stage 'a' failed: ValueError: not yet.*open-autoglm retry \w+ goes on"):
        command("run", "f.yaml")
    (failed,) = command("runs", "--json")["runs"]
    assert failed["state"] == "failed"
    assert command("retry", failed["run"], "--json")["state"] == "done"
    assert command("retry", failed["run"], "--from", "a", "--json")["state"] == "done"


def test_what_is_left_to_a_worker_can_be_paused_resumed_and_cancelled(command: Run) -> None:
    first, second = (command("run", "sums.yaml", "--detach", "--json")["run"] for _ in range(2))
    assert command("cancel", first, "--json")["state"] == "cancelled"
    assert command("pause", second, "--json")["state"] == "paused"
    command("worker", "--until-idle")
    assert command("show", second, "--json")["state"] == "paused"
    assert command("resume", second, "--detach", "--json")["state"] == "waiting"
    command("worker", "--until-idle", "--cpu", "2", "--memory", "1GB")
    assert command("show", second, "--json")["state"] == "done"
    assert command("show", first, "--json")["state"] == "cancelled"


def test_validate_names_every_fault_of_every_file(command: Run, tmp_path: Path) -> None:
    assert "pipeline 'sums' with 3 stages is valid" in command("validate", "sums.yaml")
    (tmp_path / "bad.yaml").write_text("name: bad\npipeline:\n- {stage: a, module: test_ad}\n- {stage: a, modul: x}\n")
    with pytest.raises(
        SpecificationError, match=r"^bad\.yaml:4:14: stage 'a'\.modul: unknown key; did you mean 'module'"
    ):
        command("validate", "sums.yaml", "bad.yaml")
    schema = json.loads(command("validate", "--print-schema"))
    assert schema == json.loads((Path(__file__).parents[2] / "docs/pipeline.schema.json").read_text())


def test_graph_draws(command: Run, tmp_path: Path) -> None:
    assert command("graph", "sums.yaml", "--json")["needs"] == {"first": [], "second": ["first"], "third": ["first"]}
    lines = command("graph", "sums.yaml").splitlines()
    assert any("second" in line and "test_add" in line and "first" in line for line in lines)
    mermaid = command("graph", "sums.yaml", "--format", "mermaid")
    assert mermaid.startswith("flowchart LR\n")
    assert mermaid.count(" --> ") == 2
    command("graph", "sums.yaml", "--out", "g.svg")
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    names = {"s": "http://www.w3.org/2000/svg"}
    assert len(root.findall("s:rect", names)) == 3
    assert len(root.findall("s:path", names)) == 2
    assert {"first", "second", "third"} <= {text.text for text in root.findall("s:text", names)}


def test_schedules_are_entered_paused_and_filled_back(command: Run, tmp_path: Path) -> None:
    (tmp_path / "daily.yaml").write_text(
        "trigger: {cron: '0 2 * * *', timezone: Asia/Shanghai}\n" + PIPELINE.replace("name: sums", "name: daily")
    )
    command("schedule", "add", "daily.yaml", "sums.yaml")  # nothing starts the second
    (row,) = command("schedule", "list", "--json")["schedules"]
    assert (row["pipeline"], row["timezone"], row["paused"], row["next"][-5:]) == (
        "daily",
        "Asia/Shanghai",
        False,
        "18:00",
    )
    command("schedule", "pause", "daily")
    assert command("schedule", "list", "--json")["schedules"][0]["paused"] is True
    command("schedule", "resume", "daily")
    span = ("--from", "2025-01-01", "--to", "2025-01-04", "--json")
    assert len(command("schedule", "backfill", "daily", *span)["runs"]) == 3
    assert command("schedule", "backfill", "daily", *span)["runs"] == []
    with pytest.raises(PipelineError, match="no schedule 'dayly'; did you mean 'daily'"):
        command("schedule", "pause", "dayly")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "nothing"), "there is no run 'nothing'"),
        (("run", "sums.yaml", "--input", "[1]"), "--input must be a JSON object"),
        (("run", "sums.yaml", "--priority", "urgnt"), "did you mean 'urgent'"),
        (("run", "gone.yaml"), "cannot read gone.yaml: no such file"),
        (("runs", "--database", "mysql://x/y"), "mysql is not supported; use sqlite or postgresql"),
        (("runs", "--database", "what"), "--database must be like"),
        (("validate",), "name a pipeline's file"),
        (("worker", "--memory", "lots"), "--memory: 'lots' is not a size"),
    ],
)
def test_what_is_wrong_is_one_clear_line(command: Run, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(OpenAutoGLMError) as caught:
        command(*arguments)
    assert message in str(caught.value)
