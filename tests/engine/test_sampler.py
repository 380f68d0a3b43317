# SPDX-License-Identifier: Apache-2.0
"""Sampling against transformers' and torch's own arithmetic."""

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.engine.request import SamplingParams
from open_autoglm.engine.sampler import SamplerState, _largest, sample

SIZE = 50


def make_logits(seed: int, rows: int = 1, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (rows, size)).astype(np.float32)


def draws(logits: np.ndarray, params: SamplingParams, count: int, prompt: tuple[int, ...] = ()) -> np.ndarray:
    """Many independent first tokens."""
    tokens = []
    for seed in range(count):
        state = SamplerState.start(params, prompt)
        state.generator = np.random.default_rng(seed)
        tokens.append(sample(logits.copy(), [state])[0][0])
    return np.bincount(tokens, minlength=SIZE) / count


def reference_probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    scores = torch.from_numpy(logits.copy()) / params.temperature
    ids = torch.zeros((1, 1), dtype=torch.long)
    if params.top_k > 0:
        scores = transformers.TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = transformers.TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0:
        scores = transformers.MinPLogitsWarper(params.min_p)(ids, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.5, top_k=7),
        SamplingParams(temperature=1.5, top_p=0.6),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=1.2, top_k=20, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
def test_tokens_come_as_often_as_transformers_says(params: SamplingParams) -> None:
    logits = make_logits(2)
    expected = reference_probabilities(logits, params)
    found = draws(logits, params, 4000)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    np.testing.assert_allclose(found, expected, atol=0.025)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, SIZE - 1), max_size=8), st.floats(0.2, 3.0))
def test_repetition_penalty_is_that_of_transformers(seed: int, prompt: list[int], penalty: float) -> None:
    logits = make_logits(seed)
    ids = torch.tensor([prompt or [0]], dtype=torch.long)
    changed = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, torch.from_numpy(logits.copy()))
    state = SamplerState.start(SamplingParams(repetition_penalty=penalty), prompt or [0])
    assert sample(logits.copy(), [state])[0][0] == int(changed.argmax())


def test_presence_and_frequency_penalties_are_subtracted_as_openai_says() -> None:
    logits = np.zeros((1, SIZE), dtype=np.float32)
    logits[0, 3], logits[0, 4], logits[0, 5] = 2.0, 1.2, 1.0
    state = SamplerState.start(SamplingParams(presence_penalty=0.5, frequency_penalty=0.4), [3, 3, 3])
    # 2.0, then 2 - .5 - .4 = 1.1 < 1.2; then 4 at .3, so 3 at 1.1; then 3 at .7, so 5.
    assert [sample(logits.copy(), [state])[0][0] for _ in range(4)] == [3, 4, 3, 5]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 20))
def test_logprobs_are_log_softmax_best_first(seed: int, count: int) -> None:
    logits = make_logits(seed)
    expected = torch.log_softmax(torch.from_numpy(logits.copy()).double(), -1)[0]
    state = SamplerState.start(SamplingParams(logprobs=count, temperature=2.0, repetition_penalty=2.0, seed=seed), [1])
    token, found = sample(logits.copy(), [state])[0]
    assert found is not None
    assert found.token_id == token
    assert found.logprob == pytest.approx(float(expected[token]), abs=1e-5)
    best = torch.topk(expected, count)
    assert [item for item, _ in found.top] == best.indices.tolist()
    assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_a_seeded_answer_is_the_same_whatever_else_is_in_the_batch(seed: int, others: int) -> None:
    params = SamplingParams(temperature=1.3, seed=seed, top_p=0.95)
    steps = [make_logits(100 + step, others + 1) for step in range(6)]
    alone = SamplerState.start(params, [1])
    expected = [sample(logits[:1].copy(), [alone])[0][0] for logits in steps]
    states = [SamplerState.start(params, [1])]
    states += [SamplerState.start(SamplingParams(temperature=1.0), [1]) for _ in range(others)]
    assert [sample(logits.copy(), states)[0][0] for logits in steps] == expected


def test_greedy_takes_the_largest_and_nothing_finite_is_said() -> None:
    logits = make_logits(1, 3)
    logits[1] = -np.inf
    logits[2, 7] = np.nan
    states = [SamplerState.start(SamplingParams(), [1]) for _ in range(3)]
    tokens = [token for token, _ in sample(logits.copy(), states)]
    assert tokens == [int(make_logits(1, 3)[0].argmax()), -1, -1]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.9, top_k=30),
        SamplingParams(temperature=0.7, top_p=0.8),
        SamplingParams(temperature=1.3, top_p=0.97, min_p=0.01),
        SamplingParams(temperature=1.0, top_k=5000, top_p=0.9),
        SamplingParams(temperature=2.0, top_p=0.9999),
    ],
    ids=str,
)
def test_a_long_row_is_cut_as_transformers_cuts_it(params: SamplingParams) -> None:
    """The sample that says where the largest begin, and the sorted heads, are used from 16384 columns on."""
    generator = np.random.default_rng(8)
    logits = generator.normal(0, 2, (1, 40_000)).astype(np.float32)
    logits[0, generator.integers(0, 40_000, 30)] += 9
    if not params.top_k:  # of which transformers keeps all that are equal at the edge
        logits[0, :200] = logits[0].max() - 5
    expected = reference_probabilities(logits, params)
    state = SamplerState.start(params, [1])
    tokens = []
    for seed in range(1000):
        state.generator = np.random.default_rng(seed)
        tokens.append(sample(logits.copy(), [state])[0][0])
    found = np.bincount(tokens, minlength=40_000) / 1000
    if params.top_k or params.top_p < 0.9:  # where it cannot hang on the last digit of a sum
        assert set(tokens) <= set(np.flatnonzero(expected))
    likely = expected > 0.01
    np.testing.assert_allclose(found[likely], expected[likely], atol=0.05)
    assert abs(found[likely].sum() - expected[likely].sum()) < 0.05


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 7, 20, 64, 300, 5000]), st.sampled_from([50, 16384, 30_000]))
def test_the_largest_are_those_of_a_stable_sort(seed: int, count: int, length: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.integers(-50, 50, length).astype(np.float32) if seed % 2 else make_logits(seed, 1, length)[0]
    values[generator.random(length) < 0.3] = -np.inf
    expected = np.argsort(-values, kind="stable")[:count]
    assert _largest(values, count).tolist() == expected[np.isfinite(values[expected])].tolist()


def test_bias_is_added_before_the_choice_and_leaves_the_log_probabilities() -> None:
    logits = make_logits(5)
    free = sample(logits.copy(), [SamplerState.start(SamplingParams(logprobs=3), [1])])[0]
    biased = SamplerState.start(SamplingParams(logprobs=3, logit_bias={7: 100.0, 8: 50}), [1])
    token_id, logprob = sample(logits.copy(), [biased])[0]
    assert token_id == 7
    assert free[1] is not None
    assert logprob is not None
    assert logprob.top == free[1].top
    assert logprob.logprob < free[1].logprob
    banned = SamplerState.start(SamplingParams(logit_bias={str(free[0]): -100}), [1])  # pyright: ignore[reportArgumentType]
    assert sample(logits.copy(), [banned])[0][0] == np.argsort(-logits[0])[1]


def test_what_is_kept_of_a_request_is_only_what_it_needs() -> None:
    plain = SamplerState.start(SamplingParams(), range(1000))
    assert plain.is_plain
    assert plain.generator is None
    for _ in range(3):
        sample(make_logits(1), [plain])
    assert plain.counts == {}
    for params in (
        SamplingParams(temperature=0.1), SamplingParams(logprobs=0), SamplingParams(logit_bias={1: 1.0}),
        SamplingParams(presence_penalty=0.1), SamplingParams(repetition_penalty=1.1),
    ):  # fmt: skip
        assert not SamplerState.start(params, [1]).is_plain


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-12, 1e-7])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}, {"repetition_penalty": 0.01}])
def test_temperatures_next_to_zero_take_the_likeliest_token(temperature: float, options: dict[str, float]) -> None:
    logits = make_logits(5)
    params = SamplingParams(temperature=temperature, seed=1, **options)  # pyright: ignore[reportArgumentType]
    greedy = SamplingParams(repetition_penalty=params.repetition_penalty)
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        chosen = sample(logits.copy(), [SamplerState.start(params, (1, 2, 3))])
    assert chosen == sample(logits.copy(), [SamplerState.start(greedy, (1, 2, 3))])
