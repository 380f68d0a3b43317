# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm quantize` as users start it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.e2e.conftest import last_json, run_here
from tests.engine.tiny_bundle import make_bundle

from open_autoglm.bundle import open_bundle
from open_autoglm.engine import LLM


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("quantize") / "bundle")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    said = [{"prompt": f"play song {number}", "response": f'{{"n": {number}}}'} for number in range(60)]
    file.write_text("\n".join(json.dumps(row) for row in said), encoding="utf-8")
    return file


def test_a_bundle_becomes_a_bundle_that_answers(bundle: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "quantised"
    command = ("quantize", bundle, "--out", out, "--group-size", "32", "--calibration", rows, "--samples", "4")
    done = run_here(*command, "--json")
    assert done.returncode == 0, done.stderr
    report = last_json(done.stdout)
    assert report["folder"] == str(out)
    assert report["settings"]["method"] == "gptq"
    assert len(report["matrices"]) == 12
    assert all(row["output_error"] < 0.05 for row in report["matrices"])
    assert 0 < report["size"] < report["source_size"]
    assert {file.name for file in out.iterdir()} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    made = open_bundle(out).manifest
    assert (made.default_weights, made.metrics) == ("int4", {})
    assert made.quantizations["int4"].size == report["size"]
    [parent] = made.lineage["parents"]
    assert parent["sha256"] == hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    assert json.loads((out / "quantization.json").read_text())["parents"] == [parent]
    with LLM(out) as llm:
        assert llm.chat(["play song 3"], max_tokens=4)[0].finish_reason in ("length", "stop")
    shown = run_here(*command)
    assert shown.returncode == 0, shown.stderr
    assert "12 matrices; the largest errors" in shown.stdout
    assert f"open-autoglm serve {out}" in shown.stdout.replace("\n", "")


def test_mistakes_are_one_line_and_leave_nothing(bundle: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arguments, code, saying in (
        (("--method", "awq"), 2, "needs --calibration"),
        (("--method", "rtn", "--bits", "5"), 2, "--bits must be 4 or 8"),
        (("--method", "awq", "--bits", "8", "--format", "awq"), 2, "awq format has 4 bits only"),
        (("--method", "gptq", "--calibration", str(tmp_path / "missing.txt")), 3, "missing.txt"),
        (("--method", "gptq", "--calibration", str(rows), "--samples", "0"), 2, "--samples"),
    ):
        done = run_here("quantize", bundle, "--out", out, *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert saying in done.stderr
        assert "Traceback" not in done.stderr
        assert not out.exists()
