# SPDX-License-Identifier: Apache-2.0
"""Whole checkpoints quantised: what the files mean, read by the tools' own rules, and what the engines compute."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from open_autoglm.compress.quantize_checkpoint import REPORT_FILE, QuantizationOutcome, quantize_checkpoint
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.engine.backends import load_backend
from open_autoglm.errors import CheckpointError, ConfigurationError, DataError, RunLockedError
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import PackedSequences
from open_autoglm.models.weights import Int4Weight, Int8Weight, open_weights
from open_autoglm.storage import FolderLock
from tests.compress.samples import dequantized, load_tensors, random_calibration
from tests.engine.test_native_backend import Sequences
from tests.models.random_checkpoints import CLASSES, save_chatglm_checkpoint, save_random_checkpoint

MOE = "Glm4MoeForCausalLM"
LAYOUTS = [("awq", 4), ("gptq", 4), ("gptq", 8), ("compressed-tensors", 4), ("compressed-tensors", 8)]


def quantize(source: Path, out: Path, **changes: Any) -> QuantizationOutcome:
    settings = QuantizationSettings(**{"group_size": 32, **changes})
    return quantize_checkpoint(source, out, settings, random_calibration())


def logits_of(folder: Path, token_ids: np.ndarray) -> torch.Tensor:
    model = load_model(folder)
    with torch.no_grad():
        return model.logits(model(torch.from_numpy(token_ids), PackedSequences(torch.tensor([len(token_ids)]))))


def tokens(count: int = 40) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, count)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("layout", "bits"), LAYOUTS)
def test_the_files_mean_what_the_engines_read(tmp_path: Path, layout: str, bits: int, symmetric: bool) -> None:
    save_random_checkpoint(tmp_path / "float", "GlmForCausalLM", num_hidden_layers=2, dtype="bfloat16")
    quantize(tmp_path / "float", tmp_path / "out", method="rtn", layout=layout, bits=bits, symmetric=symmetric)
    tensors = load_tensors(tmp_path / "out")
    exact = load_file(tmp_path / "float" / "model.safetensors")
    with open_weights(tmp_path / "out") as reader:
        for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"):
            module = f"model.layers.1.{name}"
            meant = dequantized(tensors, module, layout, bits)
            np.testing.assert_array_equal(reader.linear(module).float32(), meant.astype(np.float32))
            worst = np.abs(meant - exact[f"{module}.weight"].float().numpy()).max()
            assert worst < (0.35 if bits == 4 else 0.03)
    assert tensors["model.embed_tokens.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(tensors["lm_head.weight"], exact["lm_head.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == layout


@pytest.mark.parametrize(("layout", "bits"), LAYOUTS)
def test_the_native_engine_computes_what_the_files_mean(tmp_path: Path, layout: str, bits: int) -> None:
    """By row at 8 bits, which stays int8 in the engine."""
    save_random_checkpoint(tmp_path / "float", "Glm4ForCausalLM", num_hidden_layers=2)
    group_size = 32 if bits == 4 else -1
    settings = {"layout": layout, "bits": bits, "symmetric": bits == 8, "group_size": group_size}
    quantize(tmp_path / "float", tmp_path / "out", method="gptq", **settings)
    with open_weights(tmp_path / "out") as reader:
        kind = Int4Weight if bits == 4 else Int8Weight
        assert isinstance(reader.linear("model.layers.0.mlp.down_proj"), kind)
    reference = logits_of(tmp_path / "out", tokens()).numpy()
    backend = load_backend("native", tmp_path / "out")
    assert f"int{bits} as stored" in backend.description
    backend.allocate(64, 16)
    found = backend.step(Sequences([tokens()]).batch({0: (0, 40)}))
    backend.close()
    # The engine rounds activations to 8 bits, the reference does not.
    assert np.abs(found - reference).mean() < 0.03 * np.abs(reference).mean()


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("architecture", list(CLASSES))
def test_every_architecture_computes_nearly_the_same_at_8_bits(tmp_path: Path, architecture: str, method: str) -> None:
    """AWQ's scales are folded into norms, values and up rows, biases and router included, or this would be far off."""
    save_random_checkpoint(tmp_path / "float", architecture, attention_bias=True)
    outcome = quantize(tmp_path / "float", tmp_path / "out", method=method, bits=8, layout="compressed-tensors")
    expected, found = (logits_of(tmp_path / name, tokens()) for name in ("float", "out"))
    assert float((found - expected).square().mean() / expected.square().mean()) < 5e-4
    rows = outcome.report["matrices"]
    with open_weights(tmp_path / "float") as reader:
        projections = [name for name in reader.names() if name.endswith("_proj.weight") and ".layers." in name]
    assert sorted(f"{row['name']}.weight" for row in rows) == sorted(projections)
    if method == "awq":
        powers = [row["power"] for row in rows if row.get("power")]
        assert len(powers) > len(rows) // 3


@pytest.mark.parametrize("architecture", list(CLASSES))
def test_calibrated_methods_lose_less_than_rounding_to_nearest(tmp_path: Path, architecture: str) -> None:
    """On the tokens that they were calibrated with, where the rule must hold."""
    save_random_checkpoint(tmp_path / "float", architecture)
    lost: dict[str, float] = {}
    data = random_calibration().token_ids[:200].astype(np.int64)
    expected = logits_of(tmp_path / "float", data)
    for name, changes in (("rtn", {}), ("gptq", {}), ("awq", {}), ("awq to nearest", {"compensate": False})):
        method = name.split()[0]
        quantize(tmp_path / "float", tmp_path / name, method=method, layout="awq", **changes)
        lost[name] = float((logits_of(tmp_path / name, data) - expected).square().mean())
    assert lost["gptq"] < 0.9 * lost["rtn"]
    assert lost["awq"] < 0.9 * lost["rtn"]
    assert lost["awq"] < lost["awq to nearest"] < lost["rtn"]


def test_experts_that_few_tokens_reach_are_rounded_by_what_all_see(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path / "float", MOE, n_routed_experts=32, num_experts_per_tok=2)
    for method in ("gptq", "awq"):
        report = quantize(tmp_path / "float", tmp_path / method, method=method, layout="compressed-tensors").report
        poor = [row for row in report["matrices"] if row.get("note")]
        assert poor
        assert all(".experts." in row["name"] and row["method"] == "rtn" for row in poor)
        assert all("tokens reached it" in row["note"] and row["tokens"] < 64 for row in poor)
        others = [row for row in report["matrices"] if not row.get("note")]
        assert all(row["method"] == method and row["output_error"] < 0.1 for row in others)
        by_layer = {row["tokens"] for row in others if ".mlp.shared_experts." in row["name"]}
        assert by_layer == {report["calibration"]["tokens"]}


def test_chatglm_becomes_the_transformers_layout(tmp_path: Path) -> None:
    save_chatglm_checkpoint(tmp_path / "float")
    quantize(tmp_path / "float", tmp_path / "out", method="rtn")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["GlmForCausalLM"]
    assert "auto_map" not in config
    expected, found = (logits_of(tmp_path / name, tokens()) for name in ("float", "out"))
    assert torch.cosine_similarity(expected, found).mean() > 0.9


def test_matrices_that_do_not_fit_the_format_stay_as_they_are(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path / "float", "GlmForCausalLM", intermediate_size=100, head_dim=24)
    outcome = quantize(tmp_path / "float", tmp_path / "out", method="awq", group_size=128)
    assert outcome.report["group_size"] == 32
    assert outcome.report["kept"] == [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == outcome.report["kept"]
    expected, found = (logits_of(tmp_path / name, tokens()) for name in ("float", "out"))
    assert torch.cosine_similarity(expected, found).mean() > 0.9


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name != REPORT_FILE
    }


def quantize_and_die(source: Path, out: Path, method: str, moment: int) -> None:
    """In a process of its own: SIGKILL once `moment` matrices are done."""
    torch.set_num_threads(1)  # the threads of the process that this is a copy of are not there

    def kill(done: int, total: int) -> None:
        if done == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = QuantizationSettings(method=method, group_size=32)
    quantize_checkpoint(source, out, settings, random_calibration(), on_progress=kill)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, method: str) -> None:
    save_random_checkpoint(tmp_path / "float", "GlmForCausalLM")
    quantize(tmp_path / "float", tmp_path / "whole", method=method)
    out = tmp_path / "killed"
    for moment in (4, 8):  # in the first layer, and in the second
        dying = multiprocessing.get_context("fork").Process(
            target=quantize_and_die, args=(tmp_path / "float", out, method, moment)
        )
        dying.start()
        dying.join(120)
        assert dying.exitcode == -signal.SIGKILL
    assert not (out / "config.json").exists()  # not a model yet
    outcome = quantize(tmp_path / "float", out, method=method)
    assert outcome.report["resumed_at_layer"] == 1
    assert digests(out) == digests(tmp_path / "whole")
    again = quantize(tmp_path / "float", out, method=method)
    assert again.report == outcome.report
    with pytest.raises(ConfigurationError, match="holds another model already"):
        quantize(tmp_path / "float", out, method=method, damping=0.05)


def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path / "float", "GlmForCausalLM", num_hidden_layers=1)
    source, out = tmp_path / "float", tmp_path / "out"
    with pytest.raises(ConfigurationError, match="gptq needs --calibration"):
        quantize_checkpoint(source, out, QuantizationSettings(), None)
    with pytest.raises(ConfigurationError, match="is the model itself"):
        quantize_checkpoint(source, source, QuantizationSettings(method="rtn"), None)
    with pytest.raises(CheckpointError, match="is not a folder"):
        quantize_checkpoint(tmp_path / "none", out, QuantizationSettings(method="rtn"), None)
    assert not out.exists()
    with pytest.raises(DataError, match="the tokenizer has token 399"):
        quantize_checkpoint(source, out, QuantizationSettings(group_size=32), random_calibration(400))
    quantize(source, tmp_path / "done", method="rtn")
    with pytest.raises(CheckpointError, match="is quantised already"):
        quantize(tmp_path / "done", tmp_path / "again", method="rtn")
    for changes, message in (
        ({"bits": 3}, "--bits must be 4 or 8"),
        ({"bits": 8, "layout": "awq"}, "awq format has 4 bits only"),
        ({"group_size": 48}, "multiple of 32"),
        ({"damping": 0.0}, "--damping"),
        ({"method": "hqq"}, "unknown method 'hqq'"),
        ({"layout": "gguf"}, "unknown format 'gguf'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            QuantizationSettings(**changes)
    with FolderLock(tmp_path / "held"), pytest.raises(RunLockedError):
        quantize(source, tmp_path / "held", method="rtn")
