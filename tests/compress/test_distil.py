# SPDX-License-Identifier: Apache-2.0
"""Whole distillations of tiny models: what they leave, how they go on, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.huggingface import write_tokenizer
from open_autoglm.bundle.lineage import describe_parent
from open_autoglm.compress.distil import DistilOutcome, distil
from open_autoglm.compress.distil_settings import DistilSettings
from open_autoglm.compress.students import student_config
from open_autoglm.engine import LLM, LightweightDecoder
from open_autoglm.errors import CheckpointError, ConfigurationError, DataError
from open_autoglm.models.checkpoint import load_config, save_model
from open_autoglm.task import Task, TaskKind
from tests.engine.tiny_bundle import CLASSIFICATION, make_bundle, make_config, make_model, make_tokenizer


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    said = [{"prompt": f"play song {number}", "response": f"here is song {number}"} for number in range(40)]
    file.write_text("\n".join(json.dumps(row) for row in said), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("teacher"), Task(TaskKind.INSTRUCTION), name="teacher")


def checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A checkpoint that is no bundle, with the tokenizer of the tiny bundles."""
    tokenizer = make_tokenizer()
    config = make_config(tokenizer, **changes)
    save_model(make_model(config, seed), folder)
    write_tokenizer(tokenizer, folder, max_length=config.max_position_embeddings)
    return folder


def run(teachers: list[Path], rows: Path, out: Path, **changes: Any) -> DistilOutcome:
    torch.set_num_threads(1)
    settings = DistilSettings(**{"steps": 3, "tokens_per_batch": 400, **changes})
    return distil(teachers, rows, out, settings)


def test_a_bundle_teaches_a_smaller_bundle_that_answers(teacher: Path, rows: Path, tmp_path: Path) -> None:
    outcome = run([teacher], rows, tmp_path / "run", student="1x64", steps=40, learning_rate=5e-3, hidden=0.1)
    assert outcome.folder == tmp_path / "run" / "bundle"
    bundle = open_bundle(outcome.folder)
    assert bundle.manifest.origin.parents == (describe_parent(teacher),)
    assert bundle.manifest.task == open_bundle(teacher).manifest.task
    assert bundle.manifest.name == "run"
    assert load_config(outcome.folder).num_hidden_layers == 1
    curve = outcome.report["curve"]
    assert curve[-1]["valid_loss"] < curve[0]["valid_loss"]
    assert bundle.manifest.metrics == {
        "valid_loss": pytest.approx(outcome.report["losses"]["valid"]),
        "test_loss": pytest.approx(outcome.report["losses"]["test"]),
    }
    with LightweightDecoder.from_pretrained(outcome.folder) as decoder:
        assert isinstance(decoder("play song 3", max_tokens=3), str)
    # The same again is known to be done; other settings are another run.
    assert run([teacher], rows, tmp_path / "run", student="1x64", steps=40, learning_rate=5e-3, hidden=0.1) == outcome
    with pytest.raises(ConfigurationError, match="other settings"):
        run([teacher], rows, tmp_path / "run", student="1x32", steps=40)


def test_an_ensemble_teaches_from_disk(teacher: Path, rows: Path, tmp_path: Path) -> None:
    second = checkpoint(tmp_path / "second", seed=1, num_hidden_layers=1)
    outcome = run([teacher, second], rows, tmp_path / "run", cache_top=8)
    parents = open_bundle(outcome.folder).manifest.origin.parents
    assert parents == (describe_parent(teacher), describe_parent(second))
    assert not (tmp_path / "run" / "teacher").exists()
    with pytest.raises(ConfigurationError, match="one teacher"):
        run([teacher, second], rows, tmp_path / "other", hidden=0.1)


@pytest.mark.parametrize("layout", [None, "gptq"])
def test_qat_leaves_a_model_in_4_bits(teacher: Path, rows: Path, tmp_path: Path, layout: str | None) -> None:
    outcome = run([teacher], rows, tmp_path / "run", qat=True, group_size=32, layout=layout)
    manifest = open_bundle(outcome.folder).manifest
    assert manifest.default_weights == ("int4" if layout is None else "float32")
    assert set(manifest.quantizations) == ({"int4"} if layout is None else set())
    if layout is None:
        assert manifest.quantizations["int4"].method == "qat"
    config = json.loads((outcome.folder / "config.json").read_text())
    assert config.get("quantization_config", {}).get("quant_method") == layout
    with LLM(outcome.folder) as llm:
        assert llm.chat(["play song 3"], max_tokens=3)[0].finish_reason in ("length", "stop")


def test_a_checkpoint_teaches_a_checkpoint(rows: Path, tmp_path: Path) -> None:
    big = checkpoint(tmp_path / "big")
    small = checkpoint(tmp_path / "small", seed=2, intermediate_size=64)
    outcome = run([big], rows, tmp_path / "run", student=str(small))
    assert outcome.folder == tmp_path / "run" / "model"
    assert outcome.report["parents"] == [describe_parent(path).model_dump(mode="json") for path in (big, small)]
    with LLM(outcome.folder) as llm:
        assert llm.generate("play", max_tokens=2)


def test_what_does_not_go_together_is_refused_by_name(teacher: Path, rows: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint(tmp_path / "made"), tmp_path / "other")
    file = other / "tokenizer.json"
    said = json.loads(file.read_text())
    said["added_tokens"][-1]["content"] = "something else"
    file.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="other has another tokenizer than"):
        run([teacher, other], rows, tmp_path / "a")
    with pytest.raises(CheckpointError, match="share it"):
        run([teacher], rows, tmp_path / "b", student=str(other))
    with pytest.raises(ConfigurationError, match="neither the folder"):  # the command line looks for runs/tiny first
        run([teacher], rows, tmp_path / "c", student="tiny")
    with pytest.raises(ConfigurationError, match="holds something"):
        run([teacher], rows, other)
    labels = tmp_path / "labels.jsonl"
    lines = [{"text": f"text number {i}", "label": f"label {i % 3}"} for i in range(40)]
    labels.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(DataError, match="was not built for"):
        run([make_bundle(tmp_path / "classes", CLASSIFICATION)], labels, tmp_path / "d")


def test_shapes_of_students() -> None:
    teacher = make_config(num_hidden_layers=6, hidden_size=256)
    half = student_config(teacher, None)
    assert (half.num_hidden_layers, half.hidden_size, half.vocab_size) == (3, 128, teacher.vocab_size)
    chosen = student_config(teacher, "2x96x160")
    assert (chosen.num_hidden_layers, chosen.hidden_size, chosen.intermediate_size) == (2, 96, 160)
    assert (chosen.head_dim, chosen.num_attention_heads) == (32, 3)
    for shape in ("2x90", "2x64x70", "0x64", "2", "x"):
        with pytest.raises(ConfigurationError, match="--student"):
            student_config(teacher, shape)


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"steps": 0}, "--steps"),
        ({"epochs": 0}, "--epochs"),
        ({"cache_top": 4, "hidden": 1.0}, "--cache-top"),
        ({"layout": "awq"}, "--qat int4"),
        ({"max_length": 2}, "--max-length"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, Any], saying: str) -> None:
    with pytest.raises(ConfigurationError, match=saying):
        DistilSettings(**changes)
