# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm export` as users start it, on a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file
from tests.e2e.conftest import last_json, run_command, run_here
from tests.engine.tiny_bundle import make_bundle
from transformers import AutoTokenizer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("export") / "bundle")


def test_a_bundle_leaves_in_each_format_and_stays_as_it_is(bundle: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
    done = run_command(
        "export", bundle, "--format", "gguf", "--type", "q8_0", "--tokenizer", "nearest", "--out", tmp_path / "m.gguf",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = last_json(done.stdout)
    assert (report["type"], report["file"]) == ("q8_0", str(tmp_path / "m.gguf"))
    assert len(GGUFReader(tmp_path / "m.gguf").tensors) == report["tensors"]
    done = run_here("export", bundle, "--format", "huggingface", "--out", tmp_path / "hf")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'hf'}: " in done.stdout
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").chat_template
    ours, theirs = load_file(bundle / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    done = run_here("export", bundle, "--format", "onnx", "--out", tmp_path / "onnx", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "onnx" / "model.onnx.data").is_file()
    assert {file: file.read_bytes() for file in bundle.rglob("*") if file.is_file()} == before


def test_mistakes_are_one_line_and_leave_nothing(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_text("mine")
    (tmp_path / "empty").mkdir()
    there, new = tmp_path / "there.gguf", tmp_path / "new"
    for model, arguments, code, saying in (
        (bundle, ("--format", "gguf", "--tokenizer", "none", "--out", there), 2, "--force"),
        (bundle, ("--format", "onnx", "--type", "f16", "--out", new), 2, "--type is for --format gguf"),
        (bundle, ("--format", "safetensors", "--out", new), 2, "safetensors"),
        (bundle, ("--format", "peft", "--out", new), 5, "no adapter"),
        (bundle, ("--format", "huggingface", "--max-shard-size", "big", "--out", new), 2, "--max-shard-size"),
        (tmp_path / "nowhere", ("--format", "onnx", "--out", new), 5, "no model"),
        (tmp_path / "empty", ("--format", "onnx", "--out", new), 5, "config.json"),
    ):
        done = run_here("export", model, *arguments)
        assert (done.returncode, saying in done.stderr) == (code, True), (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    assert there.read_text() == "mine"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["empty", "there.gguf"]
