# SPDX-License-Identifier: Apache-2.0
"""Pruned checkpoints: what is worth nothing goes without a trace, the rest is judged and repaired as the rules say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.lineage import describe_parent
from open_autoglm.compress.importance import most_important, unit_importance, without_columns
from open_autoglm.compress.prune_checkpoint import PRUNING_FILE, PruningOutcome, prune_checkpoint
from open_autoglm.compress.pruned_shape import PruningSettings, parse_share, pruned_config
from open_autoglm.engine import LLM
from open_autoglm.engine.backends import load_backend
from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import PackedSequences
from tests.compress.samples import correlated_inputs, random_calibration
from tests.engine.test_native_backend import Sequences
from tests.engine.tiny_bundle import make_bundle
from tests.models.random_checkpoints import save_int4_checkpoint, save_random_checkpoint

IDS = np.random.default_rng(9).integers(0, 256, 40)


def prune(source: Path, out: Path, **settings: Any) -> PruningOutcome:
    return prune_checkpoint(source, out, PruningSettings(**settings), random_calibration())


def logits_of(folder: Path) -> torch.Tensor:
    model = load_model(folder)
    with torch.no_grad():
        return model.logits(model(torch.from_numpy(IDS), PackedSequences(torch.tensor([len(IDS)]))))


def change(folder: Path, **changes: Any) -> None:
    """Edit the tensors of a checkpoint by the ends of their names; layer 1 alone where the name says so."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for end, edit in changes.items():
        for name, tensor in tensors.items():
            if name.replace(".", "_").endswith(end):
                edit(tensor)
    save_file(tensors, file, metadata={"format": "pt"})


def config(**changes: Any) -> ModelConfig:
    sizes = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    return ModelConfig(**{**sizes, **heads, **changes})


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
def test_transformers_and_the_engine_load_what_is_left(tmp_path: Path, architecture: str) -> None:
    save_random_checkpoint(tmp_path / "big", architecture, attention_bias=True, dtype="bfloat16")
    outcome = prune(tmp_path / "big", tmp_path / "small", layers=2, heads=2, channels=64)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [getattr(theirs.config, name) for name in sizes] == [2, 2, 1, 64]
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS)[None]).logits[0]
    torch.testing.assert_close(logits_of(tmp_path / "small"), expected, atol=2e-4, rtol=2e-4)
    backend = load_backend("native", tmp_path / "small", weights="float32")
    backend.allocate(64, 16)
    found = backend.step(Sequences([IDS]).batch({0: (0, len(IDS))}))
    backend.close()
    assert np.abs(found - expected.numpy()).mean() < 0.02 * expected.abs().mean()
    assert load_file(tmp_path / "small" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    report = json.loads((tmp_path / "small" / PRUNING_FILE).read_text())
    assert report["after"]["parameters"] == theirs.num_parameters()
    assert report["parents"] == [describe_parent(tmp_path / "big").model_dump(mode="json")]
    assert [row["layer"] for row in outcome.report["layers"]] == sorted(row["layer"] for row in report["layers"])
    assert {path.name for path in tmp_path.iterdir()} == {"big", "small"}  # no scraps


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
def test_what_adds_nothing_goes_without_a_trace(tmp_path: Path, architecture: str) -> None:
    """A head group, two thirds of the channels and a whole layer that write nothing are found and removed."""
    save_random_checkpoint(tmp_path / "big", architecture)
    channels = torch.randperm(96, generator=torch.Generator().manual_seed(1))[:64]
    change(
        tmp_path / "big",
        o_proj_weight=lambda matrix: matrix[:, :32].zero_(),
        down_proj_weight=lambda matrix: matrix.index_fill_(1, channels, 0.0),
        layers_1_self_attn_o_proj_weight=torch.Tensor.zero_,
        layers_1_mlp_down_proj_weight=torch.Tensor.zero_,
    )
    outcome = prune(tmp_path / "big", tmp_path / "small", layers=2, heads=2, channels=32)
    torch.testing.assert_close(logits_of(tmp_path / "small"), logits_of(tmp_path / "big"), atol=1e-4, rtol=1e-4)
    rows = outcome.report["layers"]
    assert [row["layer"] for row in rows] == [0, 2]
    assert all(row["heads"] == [2, 3] for row in rows)
    assert [row[f"{unit}_share"] for row in rows for unit in ("head", "channel")] == pytest.approx([0] * 4, abs=1e-6)
    assert outcome.report["block_influence"][1] == pytest.approx(0, abs=1e-6)


def test_channels_that_others_can_stand_for_are_made_up_for(tmp_path: Path) -> None:
    """Each channel of the upper half is a weak copy of one of the lower half: with the repair nothing is lost."""
    save_random_checkpoint(tmp_path / "big", "GlmForCausalLM")

    def double(matrix: torch.Tensor) -> None:
        gate, up = matrix.chunk(2)
        gate[48:], up[48:] = gate[:48], up[:48]

    change(tmp_path / "big", gate_up_proj_weight=double, down_proj_weight=lambda matrix: matrix[:, 48:].mul_(0.1))
    expected, lost = logits_of(tmp_path / "big"), {}
    for repair in (False, True):
        out = tmp_path / f"repair-{repair}"
        outcome = prune(tmp_path / "big", out, channels=48, repair=repair)
        assert all(row["channels"] == list(range(48)) for row in outcome.report["layers"])
        lost[repair] = float((logits_of(out) - expected).square().mean() / expected.square().mean())
    assert lost[True] < 0.1 * lost[False]


def test_query_heads_go_evenly_from_each_group_where_no_group_can(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path / "big", "GlmForCausalLM", num_attention_heads=6)
    outcome = prune(tmp_path / "big", tmp_path / "small", heads=4)
    assert outcome.report["after"]["num_key_value_heads"] == 2
    for row in outcome.report["layers"]:
        assert [head // 3 for head in row["heads"]] == [0, 0, 1, 1]


def test_importance_is_the_error_of_the_outputs() -> None:
    inputs, weight = correlated_inputs(400, 32), torch.randn(24, 32, generator=torch.Generator().manual_seed(3))
    importance = unit_importance(weight, inputs.T @ inputs, 4)
    for unit in range(8):
        without = weight.clone()
        without[:, 4 * unit : 4 * unit + 4] = 0
        error = (inputs @ (weight - without).T).square().sum()
        torch.testing.assert_close(importance[unit], error, rtol=1e-3, atol=1e-3)
    assert most_important(importance, 3).tolist() == sorted(importance.argsort(descending=True)[:3].tolist())


def test_the_repair_is_the_least_squares_solution() -> None:
    inputs = correlated_inputs(400, 32).double()
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(3)).double()
    kept = torch.arange(0, 32, 2)
    best = torch.linalg.lstsq(inputs[:, kept], inputs @ weight.T).solution.T
    hessian = (inputs.T @ inputs).float()
    found = without_columns(weight.float(), hessian, kept, repair=True).double()

    def error(matrix: torch.Tensor) -> float:
        return float((inputs[:, kept] @ matrix.T - inputs @ weight.T).square().sum())

    # Damping keeps it from the very best; without the repair it is far from it.
    assert error(best) <= error(found) < 1.1 * error(best)
    assert error(weight[:, kept]) > 2 * error(found)
    with pytest.raises(CheckpointError, match="not finite"):
        without_columns(weight.float(), hessian * torch.nan, kept, repair=True)


def test_a_ratio_is_reached_by_heads_and_channels() -> None:
    whole = config()
    for ratio in (0.1, 0.3, 0.5):
        found = pruned_config(whole, PruningSettings(ratio=ratio))
        removed = 1 - found.num_decoder_parameters() / whole.num_decoder_parameters()
        assert ratio <= removed < ratio + 0.13
        assert found.intermediate_size % 32 == 0
        assert found.num_attention_heads >= (1 - ratio) * 8
    fewer = pruned_config(whole, PruningSettings(ratio=0.5, layers=4))
    assert fewer.num_hidden_layers == 4
    assert fewer.intermediate_size > pruned_config(whole, PruningSettings(ratio=0.5)).intermediate_size
    assert parse_share("30%") == parse_share("0.3") == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("settings", "saying"),
    [
        ({}, "nothing is to be removed"),
        ({"heads": 5}, "multiple of 4"),
        ({"heads": 9}, "between 1 and 8"),
        ({"layers": 0}, "between 1 and 6"),
        ({"channels": 321}, "between 1 and 320"),
        ({"ratio": 1.5}, "between 0% and 100%"),
        ({"ratio": 0.3, "channels": 64}, "either"),
        ({"ratio": 0.99}, "give --layers too"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], saying: str) -> None:
    with pytest.raises(ConfigurationError, match=saying):
        pruned_config(config(), PruningSettings(**settings))


def test_shares_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="30%"):
        parse_share("a third")


def test_models_that_cannot_be_pruned_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path / "moe", "Glm4MoeForCausalLM")
    with pytest.raises(CheckpointError, match="experts"):
        prune(tmp_path / "moe", tmp_path / "out", heads=2)
    save_int4_checkpoint(tmp_path / "packed", "GlmForCausalLM", "awq")
    with pytest.raises(CheckpointError, match="quantised"):
        prune(tmp_path / "packed", tmp_path / "out", heads=2)
    with pytest.raises(ConfigurationError, match="the model itself"):
        prune(tmp_path / "moe", tmp_path / "moe", heads=2)
    with pytest.raises(ConfigurationError, match="holds something"):
        prune(tmp_path / "moe", tmp_path / "packed", heads=2)
    assert {path.name for path in tmp_path.iterdir()} == {"moe", "packed"}


def test_a_bundle_becomes_a_bundle_that_names_its_parent(tmp_path: Path) -> None:
    parent = make_bundle(tmp_path / "parent")
    sizes = load_model(parent).config
    calibration = random_calibration(sizes.vocab_size)
    prune_checkpoint(parent, tmp_path / "child", PruningSettings(channels=32), calibration)
    child = open_bundle(tmp_path / "child")
    assert child.manifest.origin.parents == (describe_parent(parent),)
    assert child.manifest.task == open_bundle(parent).manifest.task
    assert child.manifest.parameters < open_bundle(parent).manifest.parameters
    assert not child.manifest.metrics
    assert not child.manifest.quantizations
    assert child.manifest.lineage["pruning"]["channels"] == 32
    with LLM(tmp_path / "child") as llm:
        assert llm.chat(["play a song"], max_tokens=3)[0].finish_reason in ("length", "stop")
