# SPDX-License-Identifier: Apache-2.0
"""A run that diverges goes back and goes on lower; one that cannot says why."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from open_autoglm.data import TokenizedExamples
from open_autoglm.errors import TrainingError
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.train.checkpoint import Progress
from open_autoglm.train.curves import read_curve
from open_autoglm.train.divergence import MOST_RESTARTS, DivergenceWatch
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer
from tests.train.small import make_examples, make_model, make_trainer, weights_of

SCHEDULE = Schedule(total_steps=40, decay_from=20, evaluate_every=20, checkpoint_every=5)
HOT = {"learning_rate": 6.0, "gradient_clip": 1e9, "weight_decay": 0.0, "warmup_steps": 25}
"""A rate that is harmless while it warms up and blows the loss up soon after."""


def test_a_real_divergence_goes_back_and_goes_on_lower(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **HOT)
    progress = trainer.run(SCHEDULE)
    assert progress.step == 40
    assert progress.restarts
    assert progress.rate_scale == 0.5 ** len(progress.restarts)
    for restart in progress.restarts:
        assert restart["continued_from"] <= restart["failed_step"]
        assert restart["continued_from"] % 5 == 0
        assert "loss" in restart["reason"] or "gradient" in restart["reason"]
    assert all(math.isfinite(row["valid_loss"]) for row in progress.curve)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights_of(trainer.model).values())
    notes = [row for row in read_curve(tmp_path / "curve.jsonl") if row.get("event") == "restarted"]
    assert [note["failed_step"] for note in notes] == [restart["failed_step"] for restart in progress.restarts]


def test_a_kill_after_a_divergence_changes_nothing(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", **HOT)
    expected = whole.run(SCHEDULE)

    def killed(progress: Progress, _: float) -> None:
        if progress.step == 38:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", **HOT).run(SCHEDULE, killed)
    again = make_trainer(tmp_path / "cut", **HOT)
    assert again.progress.step == 35
    progress = again.run(SCHEDULE)
    assert progress.restarts == expected.restarts
    weights = weights_of(whole.model)
    assert all(torch.equal(weight, weights[name]) for name, weight in weights_of(again.model).items())


def test_what_no_lower_rate_helps_ends_with_advice(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, learning_rate=100.0, gradient_clip=1e9, weight_decay=0.0, warmup_steps=0)
    with pytest.raises(TrainingError, match=rf"halved {MOST_RESTARTS} times from 1e\+02; give a lower learning rate"):
        trainer.run(SCHEDULE)


def poisoned(model: GlmForCausalLM, examples: TokenizedExamples, index: int) -> None:
    """Give one example a token whose embedding was never made, as unused rows of published checkpoints are."""
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = float("nan")
    examples.token_ids[int(examples.offsets[index])] = 63


def test_examples_that_give_no_number_are_named(tmp_path: Path) -> None:
    examples, model = make_examples(), make_model(tie_word_embeddings=False)
    poisoned(model, examples, 17)
    settings = TrainingSettings(tokens_per_batch=120, warmup_steps=5, dropout=0.0)
    trainer = Trainer(model, settings, FixedExamples(examples), make_examples(8), tmp_path)
    with pytest.raises(
        TrainingError, match=r"whatever the learning rate: the examples number 17 \(from 0\) .*embed_tokens"
    ):
        trainer.run(SCHEDULE)


def test_validation_examples_that_give_no_number_are_named(tmp_path: Path) -> None:
    valid, model = make_examples(8), make_model(tie_word_embeddings=False)
    poisoned(model, valid, 3)
    settings = TrainingSettings(tokens_per_batch=120, warmup_steps=5, dropout=0.0)
    trainer = Trainer(model, settings, FixedExamples(make_examples()), valid, tmp_path)
    with pytest.raises(
        TrainingError, match=r"of the validation split, the examples number 3 \(from 0\) .*embed_tokens"
    ):
        trainer.run(SCHEDULE)


def test_a_base_with_broken_weights_is_named(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(TrainingError, match=r"step 1 .*model\.layers\.1\.mlp\.down_proj\.weight"):
        make_trainer(tmp_path, model).run(SCHEDULE)


def test_measuring_speed_ends_at_once_and_writes_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "speed", learning_rate=1e9, gradient_clip=1e9, warmup_steps=0)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        trainer.run_steps(60)
    assert not (tmp_path / "speed").exists()


def test_the_watch_lets_hard_batches_pass_and_remembers_after_a_resume() -> None:
    progress = Progress()
    watch = DivergenceWatch(progress)
    generator = np.random.default_rng(0)
    for step in range(201):
        loss = float(4.0 * 0.98**step + generator.random())
        assert watch.see(20.0 if step % 10 == 9 else loss, 1.0) is None
    resumed = Progress(**json.loads(json.dumps(vars(progress))))
    for watcher in (watch, DivergenceWatch(resumed)):
        assert [watcher.see(9.0, 1.0) is None for _ in range(4)] == [True, True, True, False]
    assert watch.see(float("nan"), 1.0) is not None
    assert watch.see(1.0, float("inf")) is not None
