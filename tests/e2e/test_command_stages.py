# SPDX-License-Identifier: Apache-2.0
"""The product's commands as stages of one real run: data in, a bundle, its quantised form, its scores, a container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from open_autoglm.bundle import open_bundle
from tests.e2e.conftest import SPACE, run_command


def test_data_becomes_a_bundle_with_scores_and_a_container(
    built: tuple[Path, dict[str, Any]], small_snips: Path, tmp_path: Path
) -> None:
    """The build goes on in a folder where the command, with the same settings, has been: it is done at once."""
    pytest.importorskip("cyclonedx", reason="the extra 'package' is not installed")
    stages: list[dict[str, Any]] = [
        {"stage": "make", "module": "build", "config": {
            "data": str(small_snips), "out": str(built[0]), "steps": 27, "trials": 2, "space": str(SPACE)}},
        {"stage": "small", "module": "quantize", "config": {
            "out": str(tmp_path / "small"), "method": "rtn", "bits": 8}},
        {"stage": "score", "module": "evaluate", "config": {"data": str(small_snips / "test.jsonl")}},
        {"stage": "ship", "module": "package", "config": {"out": str(tmp_path / "image"), "image": "small:1"}},
    ]  # fmt: skip
    path, runs = tmp_path / "pipeline.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump({"name": "commands", "pipeline": stages}, sort_keys=False))
    done = run_command("run", path, "--folder", runs, "--json")
    assert done.returncode == 0, done.stderr
    payload: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])["payload"]
    small = open_bundle(payload["bundle"])
    assert small.path == tmp_path / "small"
    parent = open_bundle(built[0] / "bundle").manifest
    assert [one["name"] for one in small.manifest.lineage["parents"]] == [parent.name]
    assert small.manifest.lineage["data_sha256"] == parent.lineage["data_sha256"]
    assert (small.manifest.default_weights, small.manifest.metrics) == ("int8", {}), "nothing of it was measured yet"
    assert payload["build"]["metrics"] == built[1]["metrics"]
    answers = Path(payload["evaluation"]["answers"]).read_text(encoding="utf-8").splitlines()
    assert len(answers) == payload["evaluation"]["n"] == 12
    before = built[1]["metrics"]["test_exact_match"]
    assert abs(payload["evaluation"]["metrics"]["exact_match"] - before) < 0.2, "8 bits lose next to nothing"
    assert json.loads((tmp_path / "small" / "quantization.json").read_text())["settings"]["bits"] == 8
    assert open_bundle(tmp_path / "image" / "bundle").manifest == small.manifest
    assert payload["package"]["image"] == "small:1"
    logs = "".join(log.read_text() for log in runs.glob("**/stages/make/*.log"))
    assert "bundle" in logs, "what the stage says is in its log"
