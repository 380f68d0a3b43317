# SPDX-License-Identifier: Apache-2.0
"""The stages that ask a model: tiny real bundles in this process, and behind a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.engine.tiny_bundle import CLASSIFICATION, LINES, make_bundle
from tests.serve.conftest import serving

from open_autoglm.engine import LLM
from open_autoglm.errors import BundleError, ConfigurationError, PipelineError

Invoke = Callable[..., dict[str, Any]]
RECORDS = {"records": [{"id": n, "body": line} for n, line in enumerate(LINES)]}


@pytest.fixture(scope="module")
def extraction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("extraction"))


@pytest.fixture(scope="module")
def classification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("classification"), CLASSIFICATION)


def test_the_engine_answers_as_it_does_without_a_pipeline(invoke: Invoke, extraction: Path) -> None:
    out = invoke("glm_router", {"model_hint": str(extraction), "confidence": True}, RECORDS)["records"]
    with LLM(extraction) as llm:
        expected = [one.text for one in llm.chat([[{"role": "user", "content": line}] for line in LINES])]
    assert [one["answer"] for one in out] == expected
    assert [one["id"] for one in out] == list(range(len(LINES)))
    assert all(0 < one["confidence"] <= 1 for one in out)


def test_a_server_gives_the_same_answers(invoke: Invoke, extraction: Path) -> None:
    with serving(extraction) as server:
        schema = {
            "type": "object",
            "properties": {"intent": {"enum": ["PlayMusic", "GetWeather"]}},
            "required": ["intent"],
            "additionalProperties": False,
        }
        config = {"answer_schema": schema, "confidence": True}
        local = invoke("extract", {"model": str(extraction), **config}, RECORDS)["records"]
        remote = invoke("extract", {"model": "tiny", "url": f"{server.url}/v1", **config}, RECORDS)["records"]
        assert [one["extracted"] for one in remote] == [one["extracted"] for one in local]
        assert [one["confidence"] for one in remote] == pytest.approx([one["confidence"] for one in local], rel=1e-3)
        assert all(0 < one["confidence"] <= 1 for one in remote)
        own = invoke("extract", {"model": str(extraction)}, RECORDS)["records"]
        assert [set(one["extracted"]) for one in own] == [{"intent", "slots"}] * len(LINES)
        routed = invoke("glm_router", {"model": "tiny", "url": f"{server.url}/v1"}, RECORDS)["records"]
        assert [json.loads(one["answer"]) for one in routed] == [one["extracted"] for one in own]
        with pytest.raises(ConfigurationError, match="answered 404"):
            invoke("glm_router", {"model": "other", "url": f"{server.url}/v1"}, RECORDS)
    with pytest.raises(ConnectionError):
        invoke("glm_router", {"model": "tiny", "url": f"{server.url}/v1"}, RECORDS)


def test_classes_come_with_the_classifiers_own_probabilities(invoke: Invoke, classification: Path) -> None:
    out = invoke("classify", {"model": str(classification), "probabilities": True}, RECORDS)["records"]
    with LLM(classification) as llm:
        expected = llm.classify(LINES)
    for record, shares in zip(out, expected, strict=True):
        assert record["label"] == next(iter(shares))
        assert record["confidence"] == pytest.approx(max(shares.values()))
        assert record["probabilities"] == pytest.approx(shares)
    some = invoke("classify", {"model": str(classification), "labels": ["card", "余额"]}, RECORDS)["records"]
    assert {one["label"] for one in some} <= {"card", "余额"}
    with pytest.raises(ConfigurationError, match="has no label 'x'"):
        invoke("classify", {"model": str(classification), "labels": ["x"]}, RECORDS)


def test_routes_send_records_to_their_models(invoke: Invoke, extraction: Path, classification: Path) -> None:
    records = [{"id": 1, "body": LINES[0], "kind": "c"}, {"id": 2, "body": LINES[0], "kind": "other"}]
    config = {
        "model": str(extraction),
        "input": "body",
        "route_field": "kind",
        "routes": {"c": {"model": str(classification)}},
    }
    first, second = invoke("glm_router", config, {"records": records})["records"]
    assert first["answer"] in CLASSIFICATION.labels
    assert "intent" in json.loads(second["answer"])


def test_a_text_that_is_too_long_ends_the_run_or_says_so(invoke: Invoke, extraction: Path) -> None:
    records = {"records": [{"id": "long", "body": "word " * 3000}, {"id": "short", "body": LINES[0]}]}
    with pytest.raises(PipelineError, match=r"record 'long' has no answer: .*on_error: record"):
        invoke("glm_router", {"model": str(extraction)}, records)
    long, short = invoke("glm_router", {"model": str(extraction), "on_error": "record"}, records)["records"]
    assert long["answer"] is None
    assert long["error"]
    assert short["error"] is None
    assert short["answer"]


def test_what_is_wrong_is_said(invoke: Invoke, extraction: Path) -> None:
    for config, message in (
        ({}, "name a model"),
        ({"model": "a", "model_hint": "b"}, "name two models"),
        ({"model": "a", "url": "ftp://x"}, "write it like"),
        ({"model": "a", "routes": {"x": {"model": "b"}}}, "routes need a route_field"),
    ):
        with pytest.raises(ValidationError, match=message):
            invoke("glm_router", config, RECORDS)
    with pytest.raises(BundleError, match="there is no model 'nothing-here'"):
        invoke("glm_router", {"model": "nothing-here"}, RECORDS)
    with pytest.raises(PipelineError, match="record 1 has the text fields a, b; say which"):
        invoke("glm_router", {"model": str(extraction)}, {"records": [{"id": 1, "a": "x", "b": "y"}]})
    with pytest.raises(PipelineError, match="record 1 has no field 'bodi'; did you mean 'body'"):
        invoke("glm_router", {"model": str(extraction), "input": "bodi"}, {"records": [{"id": 1, "body": "y"}]})


def test_samples_are_a_list_that_a_vote_can_take(invoke: Invoke, extraction: Path) -> None:
    config = {"model": str(extraction), "samples": 3, "temperature": 1.5, "confidence": True}
    out = invoke("glm_router", config, {"records": RECORDS["records"][:2]})
    for record in out["records"]:
        assert [set(json.loads(answer)) for answer in record["answer"]] == [{"intent", "slots"}] * 3
        assert len(record["confidence"]) == 3
    voted = invoke("vote", {"samples": "answer", "rule": "plurality", "on_tie": "first"}, out)["records"]
    assert all(record["answer"] in given["answer"] for record, given in zip(voted, out["records"], strict=True))
    with pytest.raises(ValidationError, match="need a temperature"):
        invoke("glm_router", {"model": str(extraction), "samples": 3}, RECORDS)
