# SPDX-License-Identifier: Apache-2.0
"""Training with rounded weights: what is packed afterwards computes what the training saw, and it is worth training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_autoglm.compress.fake_quantization import FakeQuantizedLinear, fake_quantize, settle
from open_autoglm.compress.grids import Rounding, fit_grid, fit_shares, round_to_grid, span_grid
from open_autoglm.compress.int4_file import int4_plan, write_int4, write_trained_int4
from open_autoglm.compress.layer_packing import make_plan
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.compress.trained_checkpoint import write_trained_checkpoint
from open_autoglm.models.checkpoint import load_model, save_model
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.loss import validation_loss
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer
from tests.models.random_checkpoints import save_random_checkpoint
from tests.train.small import make_examples, make_model

IDS = torch.from_numpy(np.random.default_rng(9).integers(0, 256, 40))


def logits_of(model: GlmForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model(IDS, PackedSequences(torch.tensor([len(IDS)]))))


def shaken(model: GlmForCausalLM) -> GlmForCausalLM:
    """As after some training: other weights than those on which the shares were searched."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.add_(0.2 * parameter.std() * torch.randn(parameter.shape, generator=generator))
            else:
                assert name
    return model


def settings(layout: Any = "awq", **changes: Any) -> QuantizationSettings:
    return QuantizationSettings(**{"method": "rtn", "group_size": 32, "layout": layout, **changes})


@pytest.mark.parametrize(
    ("architecture", "tied"), [("GlmForCausalLM", True), ("Glm4ForCausalLM", False), ("Glm4MoeForCausalLM", False)]
)
def test_int4_of_a_bundle_computes_what_the_training_saw(tmp_path: Path, architecture: str, tied: bool) -> None:
    save_random_checkpoint(tmp_path, architecture, attention_bias=True, tie_word_embeddings=tied)
    model = load_model(tmp_path)
    exact = logits_of(model)
    plan = int4_plan(model.config, settings())
    seen = logits_of(shaken(fake_quantize(model, plan, tables=True)))
    assert float((seen - exact).abs().max()) > 0.1
    write_trained_int4(model, plan, tmp_path)
    torch.testing.assert_close(logits_of(load_model(tmp_path, weights="int4")), seen, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(logits_of(settle(model)), seen, atol=2e-4, rtol=2e-4)
    assert not any(isinstance(module, FakeQuantizedLinear) for module in model.modules())


@pytest.mark.parametrize("layout", ["awq", "gptq", "compressed-tensors"])
def test_the_tools_layouts_compute_what_the_training_saw(tmp_path: Path, layout: str) -> None:
    save_random_checkpoint(tmp_path / "float", "GlmForCausalLM", dtype="float16")
    model = load_model(tmp_path / "float")
    plan = make_plan(settings(layout, symmetric=layout == "compressed-tensors"), model.config, "float32")
    fake_quantize(model, plan, tables=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("down_proj.weight"):
                parameter.mul_(1.3)
    seen = logits_of(model)
    (tmp_path / "packed").mkdir()
    write_trained_checkpoint(model, plan, tmp_path / "packed")
    torch.testing.assert_close(logits_of(load_model(tmp_path / "packed")), seen, atol=1e-3, rtol=1e-3)


def test_rounding_is_that_of_the_writer_and_its_gradient_passes() -> None:
    """Before any training the numbers are those of RTN; beyond a grid there is no gradient."""
    rounding = Rounding(4, 32)
    linear = torch.nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) ** 3)
    fake = FakeQuantizedLinear(linear, rounding)
    expected = round_to_grid(linear.weight.detach(), fit_grid(linear.weight.detach(), rounding), rounding)
    torch.testing.assert_close(fake.rounded().codes, expected.codes)
    inputs = torch.eye(64)
    torch.testing.assert_close(fake(inputs).T, expected.values())
    fake(inputs).sum().backward()
    grid = fake.grid()
    groups = linear.weight.detach().unflatten(1, (2, 32))
    codes = torch.round(groups / grid.scales[..., None]) + grid.zeros[..., None]
    inside = ((codes >= 0) & (codes <= 15)).flatten(1)
    assert bool((~inside).any())
    torch.testing.assert_close(linear.weight.grad, inside.float())
    shares = fit_shares(linear.weight.detach(), rounding)
    assert 0.3 < float(shares.min()) < 1
    again = span_grid(linear.weight.detach(), shares, rounding)
    torch.testing.assert_close(again.scales, grid.scales)
    whole = fit_shares(linear.weight.detach(), replace(rounding, search=False))
    assert bool((whole == 1).all())


def test_training_with_rounded_weights_beats_rounding_afterwards(tmp_path: Path) -> None:
    """A model that has learnt its examples by heart loses much in 4 bits; a few hundred steps bring it back."""
    torch.set_num_threads(1)
    examples = make_examples(24)
    training = TrainingSettings(tokens_per_batch=300, warmup_steps=5, dropout=0.0, learning_rate=1e-2, weight_decay=0.0)
    trainer = Trainer(make_model(), training, FixedExamples(examples), examples, tmp_path / "float")
    trainer.run(Schedule(120, decay_from=0))
    model = trainer.model
    save_model(model, tmp_path)
    wanted = settings()
    write_int4(tmp_path, tmp_path, wanted, None)
    rounded = validation_loss(load_model(tmp_path, weights="int4"), examples)
    plan = int4_plan(model.config, wanted)
    fake_quantize(model.requires_grad_(True), plan, tables=True)
    again = Trainer(model, replace(training, learning_rate=2e-3), FixedExamples(examples), examples, tmp_path / "qat")
    again.run(Schedule(120, decay_from=0))
    write_trained_int4(model, plan, tmp_path)
    trained = validation_loss(load_model(tmp_path, weights="int4"), examples)
    assert trained == pytest.approx(validation_loss(model, examples), rel=1e-3)
    assert trained < 0.8 * rounded
