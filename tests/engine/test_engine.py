# SPDX-License-Identifier: Apache-2.0
"""The engine as a whole: batching changes no answer, faults stay with their request, and nothing leaks."""

import itertools
import random
import time
from typing import Any

import numpy as np
import pytest

from open_autoglm.engine import Engine, Request, SamplingParams
from open_autoglm.engine.backends.torch_backend import TorchBackend
from open_autoglm.engine.batch import Batch
from open_autoglm.engine.engine import complete_all
from open_autoglm.errors import RequestError
from tests.engine.tiny_bundle import make_config, make_model

PROMPTS = [tuple(np.random.default_rng(index).integers(7, 400, 3 + 7 * index).tolist()) for index in range(10)]


def make_engine(**options: Any) -> Engine:
    return Engine(TorchBackend(make_model(make_config(eos_token_ids=(5,)))), **options)


def answers(engine: Engine, requests: list[Request]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in complete_all(engine, requests)]


@pytest.fixture(scope="module")
def alone() -> dict[float, list[tuple[int, ...]]]:
    """Each prompt answered by itself, greedily and seeded."""
    found = {}
    for temperature in (0.0, 1.0):
        params = [
            SamplingParams(max_tokens=40, temperature=temperature, seed=index, ignore_eos=True)
            for index in range(len(PROMPTS))
        ]
        found[temperature] = [
            answers(make_engine(), [Request("one", prompt, own)])[0]
            for prompt, own in zip(PROMPTS, params, strict=True)
        ]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 16},
        {"max_sequences": 3, "block_size": 4},
        {"kv_blocks": 14, "block_size": 8},
        {"kv_blocks": 120, "block_size": 1, "max_batch_tokens": 33},
    ],
    ids=str,
)
def test_answers_do_not_depend_on_the_batch_its_limits_or_preemption(
    alone: dict[float, list[tuple[int, ...]]], options: dict[str, Any]
) -> None:
    for temperature, expected in alone.items():
        engine = make_engine(**options)
        requests = [
            Request(
                str(index), prompt, SamplingParams(max_tokens=40, temperature=temperature, seed=index, ignore_eos=True)
            )
            for index, prompt in enumerate(PROMPTS)
        ]
        assert answers(engine, requests) == expected
        stats = engine.stats
        assert stats.free_blocks == stats.total_blocks
        if options.get("kv_blocks"):
            assert stats.num_preemptions > 0


def test_random_arrivals_and_aborts_leak_nothing() -> None:
    engine = make_engine(kv_blocks=40, block_size=4, max_batch_tokens=50, max_sequences=6)
    generator = random.Random(4)
    alive: set[str] = set()
    finished = aborted = 0
    for index in range(300):
        if generator.random() < 0.8 and index < 250:
            prompt = tuple(generator.randrange(7, 400) for _ in range(generator.randint(1, 60)))
            params = SamplingParams(max_tokens=generator.randint(1, 30))
            engine.add_request(Request(str(index), prompt, params, priority=generator.randint(0, 1)))
            alive.add(str(index))
        if alive and generator.random() < 0.4:
            name = generator.choice(sorted(alive))
            delta = engine.abort(name)
            assert delta is not None
            assert delta.completion is not None
            assert delta.completion.finish_reason == "abort"
            alive.remove(name)
            aborted += 1
            assert engine.abort(name) is None
        for delta in engine.step():
            assert delta.request_id in alive, "an aborted request says nothing more"
            if delta.completion:
                alive.remove(delta.request_id)
                finished += 1
    while engine.has_unfinished:
        for delta in engine.step():
            finished += delta.completion is not None
    assert finished > 50
    assert aborted > 50
    assert engine.stats.free_blocks == engine.stats.total_blocks
    assert engine.stats.num_running == engine.stats.num_waiting == 0
    assert engine.step() == []


class FaultyBackend(TorchBackend):
    """Fails in the steps that are named, as a device does that runs out of memory."""

    fails_at: frozenset[int] = frozenset()
    steps = 0

    def step(self, batch: Batch) -> np.ndarray:
        self.steps += 1
        if self.steps in self.fails_at:
            raise RuntimeError("out of memory")
        return super().step(batch)


def test_a_failing_step_fails_its_requests_and_the_engine_lives_on() -> None:
    backend = FaultyBackend(make_model(make_config()))
    backend.fails_at = frozenset({3})
    engine = Engine(backend, max_sequences=2)
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    completions = complete_all(engine, [Request(str(index), PROMPTS[index], params) for index in range(4)])
    assert [completion.finish_reason for completion in completions] == ["error", "error", "length", "length"]
    assert completions[0].error == "the engine's step failed (RuntimeError: out of memory)"
    assert len(completions[0].token_ids) == 2
    assert engine.stats.free_blocks == engine.stats.total_blocks


def test_what_is_not_a_number_fails_one_request_only() -> None:
    model = make_model(make_config(tie_word_embeddings=False))
    expected = answers(Engine(TorchBackend(model)), [Request("a", (9, 8), SamplingParams(max_tokens=4))])
    model.model.embed_tokens.weight.data[11] = np.nan
    good = Request("good", (9, 8), SamplingParams(max_tokens=4))
    bad = Request("bad", (10, 11), SamplingParams(max_tokens=4))
    completions = complete_all(Engine(TorchBackend(model)), [good, bad])
    assert completions[0].token_ids == expected[0]
    assert completions[1].finish_reason == "error"


@pytest.mark.parametrize(
    ("prompt", "params", "parameter", "numbers"),
    [
        ((), {}, "messages", "empty"),
        ((1, 448), {}, "prompt_token_ids", "447"),
        ((1, -1), {}, "prompt_token_ids", "447"),
        ((1,) * 256, {}, "messages", "256"),
        ((1,) * 200, {"max_tokens": 57}, "max_tokens", "at most 56"),
        ((1,), {"stop": ("x",)}, "stop", "tokenizer"),
        ((1,), {"logit_bias": {448: 1.0}}, "logit_bias", "447"),
    ],
)
def test_requests_that_cannot_be_are_refused_with_numbers(
    prompt: tuple[int, ...], params: dict[str, Any], parameter: str, numbers: str
) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=numbers) as caught:
        engine.add_request(Request("a", prompt, SamplingParams(**params)))
    assert caught.value.parameter == parameter
    assert not engine.has_unfinished
    engine.add_request(Request("a", (1,), SamplingParams()))
    with pytest.raises(RequestError, match="in use"):
        engine.add_request(Request("a", (1,), SamplingParams()))


def test_a_small_cache_bounds_the_context() -> None:
    engine = make_engine(kv_blocks=5, block_size=8)
    assert engine.max_context == 40
    engine.add_request(Request("fits", PROMPTS[0], SamplingParams(ignore_eos=True)))
    while engine.has_unfinished:
        deltas = engine.step()
    assert deltas[0].completion is not None
    assert deltas[0].completion.prompt_tokens + deltas[0].completion.completion_tokens == 40
    assert deltas[0].completion.finish_reason == "length"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", -0.1),
        ("temperature", 2.5),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -1),
        ("max_tokens", 0),
        ("max_tokens", 10**12),
        ("logprobs", -1),
        ("logprobs", 21),
        ("seed", 2**64),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-40),
        ("stop", ("",)),
        ("stop", ("x",) * 17),
        ("stop", ("x" * 300,)),
        ("stop", (7,)),
        ("stop_token_ids", (-1,)),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {"x": 1.0}),
        ("logit_bias", {1: 101}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", [1]),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ],
)
def test_parameters_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.parameter == field
    assert len(str(caught.value)) < 200


def test_stop_tokens_end_an_answer_unless_ignored() -> None:
    model = make_model(make_config())
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    (free,) = answers(Engine(TorchBackend(model), stop_token_ids=()), [Request("a", PROMPTS[2], params)])
    stop = free[4]
    first = free.index(stop)
    (ended,) = complete_all(
        Engine(TorchBackend(model), stop_token_ids=(stop,)), [Request("a", PROMPTS[2], SamplingParams(max_tokens=20))]
    )
    assert ended.token_ids == free[: first + 1]
    assert ended.finish_reason == "stop"
    own = SamplingParams(max_tokens=20, ignore_eos=True, stop_token_ids=(stop,))
    assert answers(Engine(TorchBackend(model)), [Request("a", PROMPTS[2], own)])[0] == free[: first + 1]


@pytest.mark.parametrize("options", [{}, {"max_sequences": 1}, {"kv_blocks": 14, "block_size": 8}], ids=str)
def test_a_completion_tells_when_it_was_worked_on(options: dict[str, Any]) -> None:
    engine = make_engine(**options)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    began = time.monotonic()
    done = complete_all(engine, [Request(str(index), prompt, params) for index, prompt in enumerate(PROMPTS)])
    ended = time.monotonic()
    times = [item.times for item in done if item.times is not None]
    assert len(times) == len(PROMPTS)
    for item in times:
        assert list(item) == sorted(item)
        assert began <= item.queued
        assert item.last_token <= ended
    if options.get("max_sequences") == 1:
        for before, after in itertools.pairwise(times):
            assert after.scheduled >= before.last_token, "it waited for the one before"
    if options.get("kv_blocks"):
        assert engine.stats.num_preemptions > 0
    stats = engine.stats
    assert sum(item.completion_tokens for item in done) <= stats.num_scheduled
    assert stats.num_steps <= stats.num_scheduled
    engine.add_request(Request("left", PROMPTS[0], params))
    delta = engine.abort("left")
    assert delta is not None
    assert delta.completion is not None
    assert delta.completion.times is None, "nothing of it was computed"
