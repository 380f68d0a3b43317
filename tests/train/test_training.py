# SPDX-License-Identifier: Apache-2.0
"""Batches cover every example once, and a run that was cut off ends with the weights of one that was not."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from open_autoglm.data import TokenizedExamples
from open_autoglm.errors import CheckpointError, TrainingError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.batches import plan_epoch
from open_autoglm.train.settings import TrainingSettings, learning_rate_at
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer, answer_loss


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=300), st.integers(1, 400), st.integers(0, 5))
def test_an_epoch_has_every_example_once_in_batches_of_the_size_asked(
    lengths: list[int], tokens: int, epoch: int
) -> None:
    array = np.array(lengths, dtype=np.int64)
    batches = plan_epoch(array, tokens, seed=7, epoch=epoch)
    assert sorted(int(index) for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert array[batch].sum() < tokens + array[batch].max()


def test_epochs_differ_and_repeat_by_seed() -> None:
    lengths = np.full(100, 10)
    plans = [np.concatenate(plan_epoch(lengths, 50, seed=1, epoch=epoch)).tolist() for epoch in (0, 1, 0)]
    assert plans[0] == plans[2] != plans[1]


def make_examples(count: int = 60) -> TokenizedExamples:
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 20, count)
    learn = np.concatenate([np.arange(n) >= n // 2 for n in lengths])
    return TokenizedExamples(
        generator.integers(0, 50, lengths.sum()).astype(np.int32), learn, np.concatenate([[0], np.cumsum(lengths)])
    )


def make_model(dropout: float = 0.1) -> GlmForCausalLM:
    model = GlmForCausalLM(ModelConfig(64, 32, 64, 2, 2, 1, 16, dropout=dropout))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def test_the_loss_is_the_mean_over_answer_tokens_of_each_sequence_alone() -> None:
    examples, model = make_examples(7), make_model(0.0).eval()
    chosen = np.array([3, 0, 6])
    total, count, tokens = answer_loss(model, examples, chosen)
    expected, counted = 0.0, 0
    for index in chosen:
        span = slice(int(examples.offsets[index]), int(examples.offsets[index + 1]))
        ids = torch.from_numpy(examples.token_ids[span].astype(np.int64))
        logits = model.logits(model(ids, PackedSequences(torch.tensor([len(ids)]))))
        losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
        mask = torch.from_numpy(examples.learn[span][1:].copy())
        expected += float(losses[mask].detach().sum())
        counted += int(mask.sum())
    assert (count, tokens) == (counted, int(examples.lengths[chosen].sum()))
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def train(folder: Path, stops: list[int]) -> dict[str, torch.Tensor]:
    """Train to step 30, in a new trainer after each stop, as a new process would."""
    torch.set_num_threads(1)
    settings = TrainingSettings(tokens_per_batch=120, warmup_steps=5, seed=3)
    schedule = Schedule(total_steps=30, decay_from=10, evaluate_every=10, checkpoint_every=5)
    for stop in [*stops, 30]:
        examples = make_examples()
        trainer = Trainer(make_model(), settings, FixedExamples(examples), examples, folder)
        trainer.run(schedule, until=stop)
    assert trainer.progress.step == 30
    assert [row["step"] for row in trainer.progress.curve if row["step"] % 10 == 0] == [10, 20, 30]
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def test_a_run_cut_off_anywhere_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", [])
    pieces = train(tmp_path / "pieces", [3, 11, 12, 26])
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, pieces[name]), name


def test_work_since_the_last_checkpoint_is_done_again_identically(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", [])
    settings = TrainingSettings(tokens_per_batch=120, warmup_steps=5, seed=3)
    schedule = Schedule(total_steps=30, decay_from=10, evaluate_every=10, checkpoint_every=5)
    examples = make_examples()

    def killed(progress: object, _: float) -> None:
        if progress.step == 18:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(make_model(), settings, FixedExamples(examples), examples, tmp_path / "cut").run(schedule, killed)
    again = Trainer(make_model(), settings, FixedExamples(examples), examples, tmp_path / "cut")
    assert again.progress.step == 15
    again.run(schedule)
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, whole[name]), name


def test_training_learns(tmp_path: Path) -> None:
    examples = make_examples()
    settings = TrainingSettings(tokens_per_batch=300, warmup_steps=5, learning_rate=5e-3)
    trainer = Trainer(make_model(0.0), settings, FixedExamples(examples), examples, tmp_path)
    trainer.run(Schedule(total_steps=60, decay_from=30, evaluate_every=20))
    losses = [row["valid_loss"] for row in trainer.progress.curve]
    assert losses[-1] < 0.7 * losses[0]


def test_a_loss_that_is_no_number_is_an_error_with_the_step(tmp_path: Path) -> None:
    examples, model = make_examples(), make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    trainer = Trainer(model, TrainingSettings(), FixedExamples(examples), examples, tmp_path)
    with pytest.raises(TrainingError, match="step 1 "):
        trainer.run(Schedule(total_steps=3))


def test_a_torn_or_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    examples = make_examples()
    trainer = Trainer(make_model(), TrainingSettings(), FixedExamples(examples), examples, tmp_path)
    trainer.run(Schedule(total_steps=1))
    content = trainer.checkpoint_path.read_bytes()
    trainer.checkpoint_path.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors"):
        Trainer(make_model(), TrainingSettings(), FixedExamples(examples), examples, tmp_path)


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate_at(s, peak=1.0, warmup_steps=10, decay_from=50, total_steps=100) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:50] == [1.0] * 40
    assert all(later <= earlier for earlier, later in pairwise(rates[50:]))
    assert rates[75] == pytest.approx(0.51)
    assert rates[100] == pytest.approx(0.02)
