# SPDX-License-Identifier: Apache-2.0
"""Training with several threads that compute a part of each batch: the same gradients, the same bits each time."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapters import attach_adapter
from open_autoglm.models.glm import drop
from open_autoglm.train import gradient_workers
from open_autoglm.train.gradient_workers import GradientWorkers, workers_for
from open_autoglm.train.optimizers import Optimizer
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer
from tests.train.small import make_examples, make_model, weights_of


def train(folder: Path, workers: int, *, stops: tuple[int, ...] = (), dropout: float = 0.0) -> dict[str, Tensor]:
    settings = TrainingSettings(tokens_per_batch=120, warmup_steps=5, seed=3, dropout=dropout, precision="float32")
    schedule = Schedule(total_steps=20, decay_from=10, evaluate_every=10, checkpoint_every=5)
    model = make_model(dropout)
    for stop in (*stops, 20):
        model, examples = make_model(dropout), make_examples()
        trainer = Trainer(model, settings, FixedExamples(examples), examples, folder, workers=workers)
        trainer.run(schedule, until=stop)
    return weights_of(model)


def test_parts_of_a_batch_have_the_gradient_of_the_whole(tmp_path: Path) -> None:
    alone, together = train(tmp_path / "alone", 1), train(tmp_path / "together", 3)
    for name, weights in alone.items():
        torch.testing.assert_close(together[name], weights, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_runs_with_workers_end_with_the_same_bits_cut_off_or_not(tmp_path: Path, dropout: float) -> None:
    whole = train(tmp_path / "whole", 3, dropout=dropout)
    pieces = train(tmp_path / "pieces", 3, stops=(3, 11, 12), dropout=dropout)
    for name, weights in whole.items():
        assert torch.equal(weights, pieces[name]), name
    assert dropout == 0 or any(
        not torch.equal(whole[name], weights) for name, weights in train(tmp_path / "other", 3).items()
    )


def test_gradients_are_those_of_autograd() -> None:
    weights = torch.randn(4, 3, requires_grad=True, generator=torch.Generator().manual_seed(1))
    unused = torch.zeros(2, requires_grad=True)
    rows = [torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
    workers = GradientWorkers([weights, unused], 2)
    before = torch.get_num_threads()
    with workers.started():
        assert torch.get_num_threads() == 1
        value = workers.backward([lambda row=row: (weights @ row).square().sum() for row in rows])
    assert torch.get_num_threads() == before
    whole = torch.stack([(weights @ row).square().sum() for row in rows]).sum()
    (expected,) = torch.autograd.grad(whole, [weights])
    assert value == pytest.approx(float(whole.detach()), rel=1e-6)
    assert weights.grad is not None
    assert unused.grad is None
    torch.testing.assert_close(weights.grad, expected)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_workers_that_share_an_update_change_the_weights_as_one_does(rule: str) -> None:
    found: list[dict[str, Tensor]] = []
    for count in (0, 2, 3):
        model = make_model()
        optimizer = Optimizer(model, TrainingSettings(optimizer=rule, weight_decay=0.1))  # type: ignore[arg-type]
        workers = GradientWorkers(optimizer.parameters, count) if count else None
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for place, parameter in enumerate(optimizer.parameters):
                parameter.grad = None if place == 2 else torch.randn(parameter.shape, generator=generator)
            with nullcontext() if workers is None else workers.started():
                optimizer.step(1e-2, workers)
        assert all(parameter.requires_grad for parameter in optimizer.parameters)
        found.append(weights_of(model))
    before = weights_of(make_model())
    unchanged = [name for name, weight in found[0].items() if torch.equal(weight, before[name])]
    assert len(unchanged) == 1
    for name, weight in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6, msg=name)


def test_what_a_worker_raises_is_raised() -> None:
    def fail() -> Tensor:
        raise FloatingPointError("of the second part")

    weights = torch.ones(2, requires_grad=True)
    workers = GradientWorkers([weights], 2)
    with workers.started(), pytest.raises(FloatingPointError, match="second part"):
        workers.backward([weights.sum, fail])


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_leaves_out_a_share_and_keeps_the_mean(share: float, dtype: torch.dtype) -> None:
    hidden = torch.ones(401, 101, dtype=dtype, requires_grad=True)
    dropped = drop(hidden, share, torch.Generator().manual_seed(0))
    assert dropped.dtype == dtype
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=0.01)
    assert float(dropped.detach().float().mean()) == pytest.approx(0.0 if share == 1 else 1.0, abs=0.01)
    if share < 1:
        assert torch.equal(drop(hidden, share, torch.Generator().manual_seed(0)), dropped)
        assert not torch.equal(drop(hidden, share, torch.Generator().manual_seed(1)), dropped)
    (gradient,) = torch.autograd.grad(dropped.sum(), [hidden])
    assert torch.equal(gradient, dropped)


def test_dropout_of_neighbours_is_independent_and_none_of_it_changes_nothing() -> None:
    hidden = torch.ones(100_000)
    dropped = drop(hidden, 0.5, torch.Generator().manual_seed(0)) == 0
    for distance in range(1, 9):
        both = float((dropped[distance:] & dropped[:-distance]).float().mean())
        assert both == pytest.approx(0.25, abs=0.01)
    assert drop(hidden, 0.0, torch.Generator()) is hidden
    torch.manual_seed(3)
    drawn = drop(hidden, 0.5, None)
    torch.manual_seed(3)
    assert torch.equal(drop(hidden, 0.5, None), drawn)


@pytest.mark.parametrize(
    ("threads", "settings", "dropout", "expected"),
    [
        (4, TrainingSettings(), 0.0, 4),
        (4, TrainingSettings(), 0.1, 4),
        (1, TrainingSettings(), 0.0, 1),
        (None, TrainingSettings(), 0.0, 1),
        (4, TrainingSettings(compile=True), 0.0, 1),
        (4, TrainingSettings(activation_checkpointing=True), 0.0, 4),
        (4, TrainingSettings(activation_checkpointing=True), 0.1, 1),
    ],
)
def test_only_runs_that_can_be_repeated_have_workers(
    threads: int | None, settings: TrainingSettings, dropout: float, expected: int
) -> None:
    assert workers_for(make_model(dropout), settings, threads) == expected


def test_dropout_of_an_adapter_and_a_large_model_have_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr(gradient_workers, "_LARGE", sum(map(Tensor.numel, model.parameters())) - 1)
    assert workers_for(model, TrainingSettings(), 4) == 1
    monkeypatch.undo()
    assert workers_for(model, TrainingSettings(), 4) == 4
    attach_adapter(model, AdapterSettings(rank=2, dropout=0.1), torch.Generator().manual_seed(0))
    assert workers_for(model, TrainingSettings(), 4) == 1
