# SPDX-License-Identifier: Apache-2.0
"""What is written as YAML is read back as the same pipeline; the build can be printed so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from stages_for_tests import MODULES
from test_yaml_file import ENVIRONMENT, FULL
from tests.e2e.conftest import last_json, run_here

from open_autoglm.build_pipeline import STEPS
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.yaml_file import read_pipeline
from open_autoglm.pipeline.yaml_writing import write_pipeline


def test_written_and_read_it_is_the_same(tmp_path: Path) -> None:
    path, again = tmp_path / "p.yaml", tmp_path / "again.yaml"
    path.write_text(FULL)
    first = read_pipeline(path, StageCatalog(MODULES), environment=ENVIRONMENT).specification
    again.write_text(write_pipeline(first))
    assert read_pipeline(again, StageCatalog(MODULES), environment=ENVIRONMENT).specification == first


def test_the_build_prints_itself_as_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"please {'play' if n % 2 else 'stop'} song number {n}", "response": "ab"[n % 2]})
            + "\n"
            for n in range(60)
        )
    )
    ran = run_here("build", tmp_path, "--budget", "2m", "--print-pipeline")
    assert ran.returncode == 0, ran.stderr
    (tmp_path / "build.yaml").write_text(ran.stdout)
    content = yaml.safe_load(ran.stdout)
    assert [stage["stage"] for stage in content["pipeline"]] == list(STEPS)
    assert content["pipeline"][0]["config"]["budget"] == 120.0
    specification = read_pipeline(tmp_path / "build.yaml", default_catalog()).specification
    assert specification.needs["bundle"] == ("compress",)
    assert specification.stage("train").retry.attempts == 2
    assert not (tmp_path / "runs").exists()
    for stage in specification.stages:
        assert getattr(default_catalog().load(stage.module), "own_process", False)
    # The first step alone: that the others run as well takes minutes, and they are run by the tests of the build.
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"name": "data", "pipeline": content["pipeline"][:1]}))
    ran = run_here("run", "data.yaml", "--json")
    assert ran.returncode == 0, ran.stderr
    folder = Path(last_json(ran.stdout)["folder"])
    assert (folder / "data" / "tokenizer.json").is_file()
