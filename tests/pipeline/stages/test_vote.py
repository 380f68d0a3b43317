# SPDX-License-Identifier: Apache-2.0
"""`vote`: who wins, who does not, and that ties are said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.stages.vote import Vote, VoteConfig

Invoke = Callable[..., dict[str, Any]]


def one(invoke: Invoke, config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    return invoke("vote", config, {"records": [{"id": 1, **record}]})["records"][0]


def test_rules_differ_where_they_should(invoke: Invoke) -> None:
    samples = {"samples": "all"}
    record = {"all": ["a", "a", "b", "c"]}
    assert one(invoke, samples, record)["answer"] is None, "half is not the majority"
    most = one(invoke, {**samples, "rule": "plurality"}, record)
    assert (most["answer"], most["agreement"], most["vote"]["tie"]) == ("a", 0.5, False)
    assert most["vote"]["counts"][0] == {"answer": "a", "weight": 2.0, "voters": ["1", "2"]}
    assert one(invoke, {**samples, "rule": "agreement"}, {"all": ["a", "a"]})["answer"] == "a"
    assert one(invoke, {**samples, "rule": "agreement"}, {"all": ["a", None]})["answer"] is None
    empty = one(invoke, samples, {"all": [None]})
    assert (empty["answer"], empty["agreement"], empty["vote"]["abstained"]) == (None, 0.0, ["1"])


def test_ties_are_said_and_settled_as_asked(invoke: Invoke) -> None:
    config, record = {"fields": ["x", "y"]}, {"x": "a", "y": "b"}
    tie = one(invoke, config, record)
    assert (tie["answer"], tie["vote"]["tie"], tie["vote"]["won"]) == (None, True, False)
    first = one(invoke, {**config, "on_tie": "first"}, record)
    assert (first["answer"], first["vote"]["tie"]) == ("a", True)
    with pytest.raises(PipelineError, match=r'record 1: the vote is a tie: "a" by x and "b" by y'):
        one(invoke, {**config, "on_tie": "fail"}, record)
    weighted = one(invoke, {**config, "weights": {"y": 1.5}}, record)
    assert (weighted["answer"], weighted["agreement"]) == ("b", 0.6)


def test_answers_are_compared_by_meaning(invoke: Invoke) -> None:
    record = {"all": ['{"a": 1, "b": 2}', '{"b":2,"a":1}', "other"]}
    assert one(invoke, {"samples": "all"}, record)["answer"] == '{"a": 1, "b": 2}'
    assert one(invoke, {"samples": "all", "compare": "exact"}, record)["vote"]["tie"]
    said = {"all": ["Yes ", "yes", "no"]}
    assert one(invoke, {"samples": "all", "compare": "text"}, said)["answer"] == "Yes "
    assert one(invoke, {"samples": "all"}, {"all": [1, True, 1]})["answer"] == 1


def test_stages_are_put_together_by_id(invoke: Invoke) -> None:
    def part(*answers: tuple[int, str, float]) -> dict[str, Any]:
        return {"records": [{"id": n, "answer": text, "confidence": sure} for n, text, sure in answers]}

    payload = {"small": part((1, "a", 0.9), (2, "x", 0.3)), "large": part((2, "y", 0.8), (1, "a", 0.2))}
    config = {"stages": ["small", "large"], "weigh_by": "confidence"}
    first, second = invoke("vote", config, payload)["records"]
    assert (first["id"], first["answer"], first["agreement"]) == (1, "a", 1.0)
    assert (second["id"], second["answer"]) == (2, "y")
    assert second["agreement"] == pytest.approx(0.8 / 1.1)
    with pytest.raises(PipelineError, match="record 3 is not among those of 'large'"):
        invoke("vote", config, {**payload, "small": part((1, "a", 1), (2, "a", 1), (3, "a", 1))})
    with pytest.raises(PipelineError, match="nothing of 'large'"):
        invoke("vote", config, {"small": payload["small"]})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "one of fields, samples and stages"),
        ({"fields": ["a"]}, "two different voters"),
        ({"fields": ["a", "a"]}, "two different voters"),
        ({"fields": ["a", "b"], "weights": {"c": 1}}, "does not vote"),
        ({"fields": ["a", "b"], "weights": {"a": -1}}, "0 or more"),
        ({"fields": ["a", "b"], "weigh_by": "x"}, "is for stages"),
    ],
)
def test_settings_with_a_fault_are_refused(invoke: Invoke, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        invoke("vote", config, {"records": []})
    with pytest.raises(PipelineError, match="did you mean 'all'"):
        one(invoke, {"samples": "al"}, {"all": []})


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9))
def test_the_majority_is_what_counting_says(answers: list[str]) -> None:
    stage = Vote(VoteConfig(samples="all"))
    record = stage._decided({}, stage._ballots({"all": answers}))  # pyright: ignore[reportPrivateUsage]
    expected = next((one for one in set(answers) if 2 * answers.count(one) > len(answers)), None)
    assert record["answer"] == expected
    counts = sorted((answers.count(one) for one in set(answers)), reverse=True)
    assert record["vote"]["tie"] == (len(counts) > 1 and counts[0] == counts[1])
