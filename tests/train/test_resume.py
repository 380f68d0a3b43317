# SPDX-License-Identifier: Apache-2.0
"""With every part of the trainer in use, a run that was cut off ends with the weights of one that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from open_autoglm.errors import CheckpointError
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapters import attach_adapter
from open_autoglm.models.checkpoint import load_model
from open_autoglm.train.loss import validation_loss
from open_autoglm.train.settings import WidthTransfer
from open_autoglm.train.trainer import Schedule, Trainer
from tests.models.random_checkpoints import save_random_checkpoint
from tests.train.small import make_model, make_trainer, weights_of

PARTS: dict[str, dict[str, Any]] = {
    "muon, average, accumulation": {"optimizer": "muon", "ema_decay": 0.95, "accumulation_steps": 3},
    "checkpointing, smoothing, prompts": {
        "activation_checkpointing": True, "label_smoothing": 0.1, "prompt_loss_weight": 0.2, "schedule": "wsd",
    },
    "bfloat16, width transfer": {"precision": "bfloat16", "width_transfer": WidthTransfer(16), "ema_decay": 0.5},
}  # fmt: skip
SCHEDULE = Schedule(total_steps=24, decay_from=6, evaluate_every=8, checkpoint_every=4)


def assert_resumes(make: Any, tmp_path: Path) -> Trainer:
    """Cut a run off after 14 steps, mid-epoch, and compare with one in a single piece, bit for bit."""
    whole: Trainer = make(tmp_path / "whole")
    whole.run(SCHEDULE)

    def killed(progress: Any, _: float) -> None:
        if progress.step == 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut").run(SCHEDULE, killed)
    again: Trainer = make(tmp_path / "cut")
    assert again.progress.step == 12
    assert again.progress.batch > 0
    again.run(SCHEDULE)
    expected = weights_of(whole.model)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights_of(again.model).items())
    if whole.average is not None and again.average is not None:
        assert all(torch.equal(tensor, whole.average.tensors[name]) for name, tensor in again.average.tensors.items())
    kept = ("step", "tokens", "valid_loss", "train_loss")
    for ours, theirs in zip(again.progress.curve, whole.progress.curve, strict=True):
        assert [ours[name] for name in kept] == [theirs[name] for name in kept]
    assert again.load_best()
    assert whole.load_best()
    best = weights_of(whole.model)
    assert all(torch.equal(weight, best[name]) for name, weight in weights_of(again.model).items())
    return again


@pytest.mark.parametrize("parts", list(PARTS))
def test_a_cut_run_ends_as_a_whole_one(tmp_path: Path, parts: str) -> None:
    assert_resumes(lambda folder: make_trainer(folder, make_model(0.2), dropout=0.2, **PARTS[parts]), tmp_path)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_cut_run_of_an_adapter_ends_as_a_whole_one_and_stores_no_base(tmp_path: Path, kind: str) -> None:
    save_random_checkpoint(tmp_path / "base", "GlmForCausalLM", num_hidden_layers=1)

    def make(folder: Path) -> Trainer:
        model = load_model(tmp_path / "base")
        attach_adapter(model, AdapterSettings(kind=kind, rank=2, dropout=0.1), torch.Generator().manual_seed(1))
        return make_trainer(folder, model, learning_rate=1e-3)

    trainer = assert_resumes(make, tmp_path)
    assert all(".lora_" in name for group in trainer.optimizer.groups for name in group.names)
    assert trainer.checkpoint_path.stat().st_size < (tmp_path / "base" / "model.safetensors").stat().st_size / 2


def test_the_average_is_kept_when_it_is_better(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rate=2e-2, ema_decay=0.9, warmup_steps=1)
    trainer.run(Schedule(total_steps=40, decay_from=10, evaluate_every=5))
    curve = trainer.progress.curve
    with_both = [row for row in curve if "last_valid_loss" in row]
    half = [row["step"] for row in curve if row["step"] > 25]  # half a cosine from 10 to 40
    assert [row["step"] for row in with_both] == half
    assert all(row["valid_loss"] == min(row["last_valid_loss"], row["average_valid_loss"]) for row in with_both)
    assert all(row["valid_loss"] == row["average_valid_loss"] for row in curve if row not in with_both)
    assert trainer.load_best()
    best = min(curve, key=lambda row: row["valid_loss"])
    assert validation_loss(trainer.model, trainer.valid) == pytest.approx(best["valid_loss"], rel=1e-6)
    trainer.load_last(averaged=True)
    assert validation_loss(trainer.model, trainer.valid) == pytest.approx(curve[-1]["average_valid_loss"], rel=1e-6)
    trainer.load_last()
    assert validation_loss(trainer.model, trainer.valid) == pytest.approx(curve[-1]["last_valid_loss"], rel=1e-6)
    with trainer.better_weights():
        assert validation_loss(trainer.model, trainer.valid) == pytest.approx(curve[-1]["valid_loss"], rel=1e-6)


def test_at_a_constant_rate_the_average_alone_is_validated(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rate=2e-2, ema_decay=0.9, warmup_steps=1)
    trainer.run(Schedule(total_steps=20))
    last = validation_loss(trainer.model, trainer.valid)
    with trainer.better_weights():
        assert validation_loss(trainer.model, trainer.valid) == pytest.approx(
            trainer.progress.curve[-1]["valid_loss"], rel=1e-6
        )
    assert trainer.progress.curve[-1]["valid_loss"] != pytest.approx(last, rel=1e-3)


def test_a_checkpoint_of_another_optimiser_or_model_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path).run(Schedule(total_steps=2))
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors .*delete it"):
        make_trainer(tmp_path, optimizer="muon")
    with pytest.raises(CheckpointError, match=r"shape|missing|layers"):
        make_trainer(tmp_path, make_model(num_hidden_layers=3))


def test_training_in_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        trainer = make_trainer(tmp_path / precision, precision=precision)
        trainer.run(Schedule(total_steps=20))
        losses[precision] = trainer.progress.curve[-1]["valid_loss"]
        assert all(weight.dtype == torch.float32 for weight in weights_of(trainer.model).values())
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
