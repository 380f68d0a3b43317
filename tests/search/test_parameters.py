# SPDX-License-Identifier: Apache-2.0
"""Parameters: there and back through the encoding, conditions, steps, and what is refused."""

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.errors import ConfigurationError
from open_autoglm.search.parameters import ParameterSpace, categorical, integer, log_uniform, uniform

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = ParameterSpace(
    (
        log_uniform("rate", 1e-4, 1e-1),
        uniform("dropout", 0.0, 0.3, step=0.05),
        uniform("share", -1.0, 1.0),
        integer("layers", 2, 8, step=2),
        integer("batch", 8, 512, log=True),
        categorical("optimizer", ("adamw", "muon", 1, True)),
        uniform("momentum", 0.5, 0.99).when("optimizer", "muon"),
        categorical("nesterov", (True, False)).when("optimizer", "muon"),
        integer("depth", 1, 3).when("layers", 2, 4),
    )
)
SEEDS = st.integers(0, 2**32 - 1)


@given(SEEDS)
def test_values_come_back_from_their_encoding(seed: int) -> None:
    values = SPACE.draw(np.random.default_rng(seed))
    vector = SPACE.encode(values)
    assert vector.shape == (SPACE.size,) == (13,)
    assert ((vector >= 0) & (vector <= 1)).all()
    again = SPACE.decode(vector)
    assert again.keys() == values.keys()
    for name, value in values.items():
        assert type(again[name]) is type(value)
        assert again[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)
    assert SPACE.check(values) == values


@given(st.lists(st.floats(-0.5, 1.5), min_size=13, max_size=13))
def test_any_vector_decodes_to_values_of_the_space(vector: list[float]) -> None:
    values = SPACE.decode(np.array(vector))
    assert SPACE.check(values) == values
    assert ("momentum" in values) == (values["optimizer"] == "muon") == ("nesterov" in values)
    assert ("depth" in values) == (values["layers"] in (2, 4))


def test_the_encoding_is_even_on_its_scale_and_neutral_where_nothing_applies() -> None:
    values = {"rate": 1e-2, "dropout": 0.15, "share": 0.0, "layers": 6, "batch": 64, "optimizer": 1}
    expected_batch = math.log(64 / 8) / math.log(512 / 8)
    expected = [2 / 3, 0.5, 0.5, 2 / 3, expected_batch, 0, 0, 1, 0, 0.5, 0.5, 0.5, 0.5]
    assert SPACE.encode(values) == pytest.approx(expected)


@given(SEEDS)
def test_optuna_asks_for_the_same_parameters(seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    values = SPACE.suggest(trial)
    assert SPACE.check(values) == values
    assert trial.params.keys() == values.keys()


@given(SEEDS)
def test_neighbours_are_values_of_the_space_that_differ(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = SPACE.draw(generator)
    other = SPACE.near(values, generator)
    assert SPACE.check(other) == other


def test_neighbours_change_about_the_share_that_is_asked_for() -> None:
    generator = np.random.default_rng(0)
    space = ParameterSpace(tuple(uniform(f"p{index}", 0, 1) for index in range(20)))
    values = dict.fromkeys(space.names, 0.5)
    changed = [sum(space.near(values, generator, changed=0.3)[name] != 0.5 for name in values) for _ in range(200)]
    assert min(changed) >= 1
    assert 5.5 < np.mean(changed) < 7.5


def test_draws_cover_each_step_alike() -> None:
    generator = np.random.default_rng(0)
    parameter = uniform("dropout", 0.0, 0.3, step=0.1)
    drawn = [parameter.draw(generator) for _ in range(2000)]
    assert sorted(set(drawn)) == [0.0, 0.1, 0.2, 0.3]
    assert all(400 < drawn.count(value) < 600 for value in (0.0, 0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: uniform("x", 1, 1), "less than"),
        (lambda: uniform("x", 0, math.inf), "finite"),
        (lambda: log_uniform("x", 0, 1), "above zero"),
        (lambda: uniform("x", 0, 1, step=0.3), "do not lead"),
        (lambda: integer("x", 0, 5, step=2), "do not lead"),
        (lambda: categorical("x", ("a", "a")), "different"),
        (lambda: categorical("x", ()), "at least one"),
        (lambda: ParameterSpace((uniform("x", 0, 1), uniform("x", 0, 2))), "twice"),
        (lambda: ParameterSpace((uniform("x", 0, 1).when("y", "a"), categorical("y", ("a",)))), "before it"),
        (lambda: ParameterSpace((categorical("y", ("a",)), uniform("x", 0, 1).when("y", "b"))), "one of 'a'"),
        (lambda: log_uniform("x", 1e-4, 0.1).check(1), "between"),
        (lambda: SPACE.check({"rat": 1e-2}), "did you mean 'rate'"),
        (lambda: SPACE.check({"rate": 1e-2}), "has no value"),
        (lambda: integer("x", 0, 5).check(1.5), "whole"),
        (lambda: uniform("x", 0, 1, step=0.25).check(0.3), "steps of 0.25"),
        (lambda: uniform("x", 0, 1).check(True), "must be a number"),
        (lambda: categorical("x", (1, 2)).check(True), "one of 1, 2"),
    ],
)
def test_nonsense_is_refused_with_words(make, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()
