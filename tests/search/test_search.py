# SPDX-License-Identifier: Apache-2.0
"""The plan keeps to the budget, the journal keeps what is committed, and a killed search ends as one that was not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, TokenizedExamples
from open_autoglm.errors import BudgetError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.search.baselines import score_baselines
from open_autoglm.search.journal import CommittedJournal
from open_autoglm.search.leaderboard import Entry, Leaderboard
from open_autoglm.search.plan import RUNGS, Plan, plan_by_steps, plan_by_time, training_flops
from open_autoglm.search.space import Candidate, SearchSpace
from open_autoglm.search.tuner import Tuner
from open_autoglm.task import Task, TaskKind
from open_autoglm.train.trainer import FixedExamples

MACHINE = {"flops_per_second": 1e11, "step_flops": 2e10, "epoch_flops": 6e12}


@given(st.floats(40, 1e5), st.floats(0, 30))
def test_a_plan_never_spends_more_than_the_budget(budget: float, elapsed: float) -> None:
    try:
        plan = plan_by_time(budget=budget, elapsed=elapsed, trials=None, **MACHINE)
    except BudgetError as error:
        assert "--budget" in str(error)
        return
    assert plan.search_seconds + plan.train_seconds + elapsed <= budget
    assert plan.train_seconds > plan.search_seconds
    assert 2 <= plan.trials <= 30


def test_a_budget_too_small_names_one_that_would_do() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_by_time(budget=40, elapsed=10, trials=None, **MACHINE)
    named = str(caught.value).split("--budget ")[1].split()[0]
    seconds = float(named[:-1]) * (60 if named.endswith("m") else 1)
    plan_by_time(budget=seconds, elapsed=10, trials=None, **MACHINE)


def test_flops_count_the_parameters_of_a_real_model() -> None:
    config = ModelConfig(256, 64, 128, 2, 2, 1, 32)
    model = GlmForCausalLM(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    flops = training_flops(config, mean_length=0, learn_share=1.0)
    assert flops == pytest.approx(6 * (matrices + config.vocab_size * config.hidden_size), rel=0.01)


def test_what_was_not_committed_is_cut_off(tmp_path: Path) -> None:
    journal = CommittedJournal(tmp_path)
    study = optuna.create_study(study_name="s", storage=journal.storage)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    journal.commit()
    study.add_trial(optuna.trial.create_trial(value=2.0))
    with next(tmp_path.glob("*.journal")).open("ab") as file:
        file.write(b'{"torn": ')
    again = optuna.load_study(study_name="s", storage=CommittedJournal(tmp_path).storage)
    assert [trial.value for trial in again.get_trials()] == [1.0]


def make_space(base: ModelConfig | None = None, kind: TaskKind = TaskKind.EXTRACTION) -> SearchSpace:
    return SearchSpace(Task(kind), 64, 128, (0,), 0, 5, base)


@given(st.integers(0, 10_000))
def test_every_proposal_is_a_valid_model(seed: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    candidate = make_space().suggest(study.ask())
    assert candidate.config.hidden_size == candidate.config.num_attention_heads * candidate.config.head_dim
    assert 1e-3 <= candidate.settings.learning_rate <= 4e-3


def test_the_first_trial_is_inside_the_space_and_a_base_keeps_its_architecture() -> None:
    for kind in (TaskKind.EXTRACTION, TaskKind.CLASSIFICATION):
        space = make_space(kind=kind)
        assert (space.suggest(optuna.trial.FixedTrial(space.defaults())).settings.augmentation > 0) == (
            kind is TaskKind.EXTRACTION
        )
    base = ModelConfig(64, 64, 96, 2, 2, 2, 32, architecture="Glm4ForCausalLM")
    space = make_space(base)
    found = space.suggest(optuna.trial.FixedTrial(space.defaults()))
    assert found.config == base
    assert found.settings.learning_rate < 1e-4


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


def run_search(folder: Path, kill_at: Callable[[int], bool]) -> tuple[list[dict[str, Any]], Any]:
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    lengths = generator.integers(4, 12, 80)
    examples = TokenizedExamples(
        generator.integers(0, 64, lengths.sum()).astype(np.int32),
        np.ones(lengths.sum(), dtype=bool),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1
        if kill_at(calls):
            raise KilledError

    def make_model(candidate: Candidate) -> GlmForCausalLM:
        model = GlmForCausalLM(candidate.config)
        model.initialize(torch.Generator().manual_seed(0))
        return model

    tuner = Tuner(
        folder,
        make_space(),
        plan_by_steps(40, 5),
        make_model=make_model,
        make_source=lambda _: FixedExamples(examples),
        valid=examples,
        mean_length=8.0,
        score=lambda _: 0.5,
        report=lambda event: count() if event["event"] == "trial_rung" else None,
        on_step=count,
    )
    outcome = tuner.run()
    rows = [{"name": e.name, "state": e.state, "loss": e.valid_loss, "choices": e.choices} for e in tuner.entries()]
    return rows, outcome


def test_a_search_killed_again_and_again_equals_one_that_was_not(tmp_path: Path) -> None:
    whole, best = run_search(tmp_path / "whole", lambda _: False)
    assert len(whole) == 5
    generator = np.random.default_rng(4)
    kills = 0
    while True:
        fatal = int(generator.integers(3, 16))
        try:
            pieces, best_of_pieces = run_search(tmp_path / "pieces", lambda call, fatal=fatal: call == fatal)
            break
        except KilledError:
            kills += 1
    assert kills >= 3
    assert json.dumps(pieces) == json.dumps(whole)
    assert best_of_pieces.number == best.number
    kept = [path.name for path in (tmp_path / "pieces" / "trials").iterdir()]
    assert kept == [f"{best.number:04d}"]


def test_steps_of_a_trial_follow_its_computation() -> None:
    plan = Plan(3, 1e12, None, 60, 100, None)
    small, large = (ModelConfig(64, 32 * n, 64 * n, 2, n, n, 32) for n in (2, 8))
    assert plan.steps_of_trial(small, 1000, 40) > plan.steps_of_trial(large, 1000, 40) >= RUNGS


def test_the_linear_baseline_learns_and_the_leaderboard_is_honest() -> None:
    def example(text: str, label: str) -> Example:
        return Example((Message(Role.USER, text), Message(Role.ASSISTANT, label)))

    train = [example(f"我很喜欢 {i}", "好") for i in range(20)] + [example(f"太糟糕了 {i}", "坏") for i in range(10)]
    valid = [example("喜欢", "好"), example("糟糕", "坏")]
    task = Task(TaskKind.CLASSIFICATION, labels=("好", "坏"))
    rows = {row.name: row.score for row in score_baselines(task, train, valid)}
    assert rows == {"majority label": 0.5, "TF-IDF + linear SVM": 1.0}
    board = Leaderboard("accuracy", True)
    for row in score_baselines(task, train, valid):
        board = board.with_entry(row)
    worse = board.with_entry(Entry("final model", "final", 0.75))
    assert worse.winning_baseline().name == "TF-IDF + linear SVM"
    assert worse.with_entry(Entry("final model", "final", 1.0)).winning_baseline() is None
    assert score_baselines(Task(TaskKind.EXTRACTION), train, valid) == []


def test_a_leaderboard_is_read_back_as_it_was(tmp_path: Path) -> None:
    board = Leaderboard(
        "perplexity", False, (Entry("a", "trial", 3.0), Entry("b", "trial", 2.0), Entry("c", "trial", None))
    )
    board.save(tmp_path / "board.json")
    again = Leaderboard.load(tmp_path / "board.json")
    assert again == board
    assert [row.name for row in again.ranked()] == ["b", "a", "c"]
