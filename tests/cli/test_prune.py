# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm prune` run to its end."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.conftest import last_json, run_here
from tests.engine.tiny_bundle import make_bundle

from open_autoglm.bundle import open_bundle


def test_a_bundle_is_pruned_and_mistakes_are_one_line(tmp_path: Path) -> None:
    bundle, rows, out = make_bundle(tmp_path / "parent"), tmp_path / "rows.jsonl", tmp_path / "small"
    said = [{"prompt": f"play song {number}", "response": f'{{"n": {number}}}'} for number in range(60)]
    rows.write_text("\n".join(json.dumps(row) for row in said), encoding="utf-8")
    command = ("prune", bundle, "--calibration", rows, "--out", out, "--samples", "4")
    for arguments, code, saying in (
        ((), 2, "nothing is to be removed"),
        (("--ratio", "much"), 2, "write it like 30%"),
        (("--heads", "3"), 2, "--heads 3"),
    ):
        done = run_here(*command, *arguments)
        assert done.returncode == code, done.stderr
        assert saying in done.stderr
        assert "Traceback" not in done.stderr
        assert not out.exists()
    done = run_here(*command, "--ratio", "30%", "--json")
    assert done.returncode == 0, done.stderr
    report = last_json(done.stdout)
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert open_bundle(out).manifest.parameters == report["after"]["parameters"]
    shown = run_here("prune", bundle, "--calibration", rows, "--out", tmp_path / "other", "--heads", "2")
    assert shown.returncode == 0, shown.stderr
    assert "what stays" in shown.stdout
    assert "--student" in shown.stdout
