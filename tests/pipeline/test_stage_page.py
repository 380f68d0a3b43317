# SPDX-License-Identifier: Apache-2.0
"""docs/stages.md is what the code says, and each example in it is one that the code takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from open_autoglm.cli import create_app
from open_autoglm.errors import PipelineError, SpecificationError
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.stage_page import example_stages, stage_page
from open_autoglm.pipeline.stages import BUILT_IN
from open_autoglm.pipeline.yaml_file import read_pipeline

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    page = stage_page()
    assert page == (DOCS / "stages.md").read_text(encoding="utf-8"), "run: open-autoglm stages > docs/stages.md"
    for name in BUILT_IN:
        assert f"\n## {name}\n" in page
    assert "| `threshold` | number 0.0..1.0 | **needed** |  |" in stage_page("confidence_gate")
    with pytest.raises(PipelineError, match="did you mean 'retrieve'"):
        stage_page("retreive")


def test_each_example_is_a_stage_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKETS_URL", "sqlite:///x")
    for secret in ("MAIL", "CRM"):
        monkeypatch.setenv(f"OPEN_AUTOGLM_SECRET_{secret}", "x")
    monkeypatch.setenv("OPEN_AUTOGLM_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    for kind, name in (("source", "crm"), ("sink", "folder")):
        for command in (["new", kind, name], ["enable", name]):
            assert CliRunner().invoke(create_app(), ["plugin", *command]).exit_code == 0
    examples = example_stages()
    assert set(examples) == set(BUILT_IN)
    stages = [{"stage": name, "module": name, **example} for name, example in examples.items()]
    for stage in stages:
        stage.setdefault("needs", ["small"])
    sources = [{"stage": name, "module": "file_source", "config": {"path": "x.jsonl"}} for name in ("small", "large")]
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "pipeline": [*sources, *stages]}))
    found = read_pipeline(path, default_catalog())
    assert len(found.to_dict()["stages"]) == len(BUILT_IN) + 2
    for stage in stages:
        stage["config"] = {**stage["config"], "nonsense": 1}
    path.write_text(yaml.safe_dump({"name": "x", "pipeline": [*sources, *stages]}))
    with pytest.raises(SpecificationError) as caught:
        read_pipeline(path, default_catalog())
    assert sum("nonsense" in fault for fault in caught.value.faults) == len(BUILT_IN), "each config was looked at"
