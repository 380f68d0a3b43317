# SPDX-License-Identifier: Apache-2.0
"""The plan keeps to the budget, names one that would do, and says when another trial no longer pays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.errors import BudgetError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.search.plan import (
    RUNGS,
    Plan,
    another_trial_pays,
    finish_seconds_again,
    measured_finish_seconds,
    plan_by_steps,
    plan_by_time,
    training_flops,
)

MACHINE = {"flops_per_second": 1e11, "step_flops": 2e10, "epoch_flops": 6e12}


@given(st.floats(40, 1e5), st.floats(0, 30))
def test_a_plan_spends_the_budget_and_never_more(budget: float, elapsed: float) -> None:
    try:
        plan = plan_by_time(budget=budget, elapsed=elapsed, trials=None, **MACHINE)
    except BudgetError as error:
        assert "--budget" in str(error)
        return
    spent = plan.search_seconds + plan.train_seconds + elapsed + plan.finish_seconds
    assert spent == pytest.approx(budget)
    assert plan.train_seconds > plan.search_seconds
    assert 1 <= plan.trials <= 30
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_short_budget_is_not_spent_on_comparing() -> None:
    assert plan_by_time(budget=60, elapsed=10, trials=None, **MACHINE).trials == 1
    assert plan_by_time(budget=3600, elapsed=10, trials=None, **MACHINE).trials >= 3


def test_a_trial_sees_half_of_the_data_where_the_search_has_the_time() -> None:
    half = MACHINE["epoch_flops"] / 2
    long, middling, short = (
        plan_by_time(budget=seconds, elapsed=10, trials=None, **MACHINE) for seconds in (3600, 600, 300)
    )
    assert long.trial_flops > half and long.trials > 1
    assert middling.trial_flops == pytest.approx(half) and middling.trials > 1
    assert short.trial_flops < half and short.trials == 1


def test_a_budget_too_small_names_one_that_would_do() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_by_time(budget=40, elapsed=30, trials=None, **MACHINE)
    named = str(caught.value).split("--budget ")[1].split()[0]
    seconds = float(named[:-1]) * (60 if named.endswith("m") else 1)
    plan_by_time(budget=seconds, elapsed=30, trials=None, **MACHINE)


def test_flops_count_the_parameters_of_a_real_model() -> None:
    config = ModelConfig(256, 64, 128, 2, 2, 1, 32)
    model = GlmForCausalLM(config)
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n)
    flops = training_flops(config, mean_length=0, learn_share=1.0)
    assert flops == pytest.approx(6 * (matrices + config.vocab_size * config.hidden_size), rel=0.01)


def test_steps_of_a_trial_follow_its_computation() -> None:
    plan = Plan(3, 1e12, None, 60, 100, None)
    small, large = (ModelConfig(64, 32 * n, 64 * n, 2, n, n, 32) for n in (2, 8))
    assert plan.steps_of_trial(small, 1000, 40) > plan.steps_of_trial(large, 1000, 40) >= RUNGS
    assert plan_by_steps(90, None).steps_of_trial(large, 1000, 40) == 30


def test_another_trial_pays_as_expected_improvement_says() -> None:
    """Against the mean of what drawn trials would gain."""
    promises = [3.0, 2.6, 2.9, 2.5]
    mean, deviation = np.mean(promises), np.std(promises, ddof=1)
    drawn = np.random.default_rng(0).normal(mean, deviation, 400_000)
    gain = float(np.maximum(0.0, min(promises) - drawn).mean())
    assert another_trial_pays(promises, seconds=10, gain_per_second=0.98 * gain / 10)
    assert not another_trial_pays(promises, seconds=10, gain_per_second=1.02 * gain / 10)
    assert another_trial_pays(promises[:2], seconds=10, gain_per_second=1e9)
    assert not another_trial_pays([2.0, 2.0, 2.0], seconds=10, gain_per_second=0.0)


def test_the_finish_is_what_was_measured_and_a_little() -> None:
    seconds = measured_finish_seconds(
        900, start_seconds=4, seconds_per_answer=0.005, answers=3500, size_bytes=6_000_000
    )
    assert 2 * 4 + 3500 * 0.005 < seconds < 2 * 4 + 3500 * 0.005 + 0.05 * 900


def test_slower_answers_leave_less_for_training() -> None:
    known = {"start_seconds": 4.0, "answers": 3500, "size_bytes": 6_000_000}
    found = {
        "finish_seconds": measured_finish_seconds(900, seconds_per_answer=0.005, **known),
        "answers": 3500,
        "seconds_per_answer": 0.005,
    }
    for seconds in (0.001, 0.005, 0.03):
        again = measured_finish_seconds(900, seconds_per_answer=seconds, **known)
        assert finish_seconds_again(found, seconds) == pytest.approx(again)
    assert finish_seconds_again({"finish_seconds": 20.0}, 0.5) == 20.0  # written by an older version
