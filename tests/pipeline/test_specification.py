# SPDX-License-Identifier: Apache-2.0
"""Specifications: what is refused and how it is said, and the order, held against the standard library's."""

from __future__ import annotations

import graphlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs_for_tests import pipeline, stage

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline import PipelineSpecification, RetrySpecification, StageSpecification

NAMES = [f"s{index}" for index in range(12)]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, tuple[str, ...]]:
    """Any graph over a few names: cycles and needs of oneself included."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    return {name: tuple(draw(st.lists(st.sampled_from(names), unique=True, max_size=3))) for name in names}


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_the_order_is_that_of_graphlib_or_there_is_a_cycle(graph: dict[str, tuple[str, ...]]) -> None:
    stages = tuple(stage(name, "append", needs) for name, needs in graph.items())
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError:
        with pytest.raises(PipelineError, match="goes in a circle: ") as caught:
            pipeline(*stages)
        cycle = str(caught.value).split("circle: ")[1].split(" -> ")
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
        assert all(need in graph[name] for name, need in itertools.pairwise(cycle))
        return
    specification = pipeline(*stages)
    order = [one.stage for one in specification.order]
    assert sorted(order) == sorted(graph)
    sorter, ready = graphlib.TopologicalSorter(graph), set()
    sorter.prepare()
    for name in order:  # each must be among those that are ready by then
        ready.update(sorter.get_ready())
        assert name in ready
        sorter.done(name)
    place = {name: index for index, name in enumerate(order)}
    assert all(place[need] < place[name] for name, needs in graph.items() for need in needs)
    assert set(specification.last) == set(graph) - {need for needs in graph.values() for need in needs}
    assert PipelineSpecification.from_dict(json.loads(json.dumps(specification.to_dict()))) == specification


def test_the_order_is_as_written_where_that_is_possible() -> None:
    written = pipeline(
        stage("c", "append", ("a",)), stage("b", "append"), stage("a", "append"), stage("d", "append", ())
    )
    assert [one.stage for one in written.order] == ["b", "a", "c", "d"]


def test_without_any_needs_the_list_is_a_chain() -> None:
    chain = pipeline(stage("a", "append"), stage("b", "append"), stage("c", "append"))
    assert chain.needs == {"a": (), "b": ("a",), "c": ("b",)}
    assert chain.last == ("c",)
    loose = pipeline(stage("a", "append", ()), stage("b", "append"))
    assert loose.needs == {"a": (), "b": ()}


def one(**values: Any) -> dict[str, Any]:
    """A pipeline of one stage."""
    return {"name": "p", "stages": [{"stage": "a", "module": "m", **values}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "the pipeline must be a mapping"),
        ({"name": "p"}, "needs a 'name' and a list of 'stages'"),
        ({"name": "p", "stages": []}, "pipeline 'p' has no stages"),
        ({"name": "p", "stages": ["a"]}, "stage must be a mapping, not str"),
        ({"name": "p", "stages": one()["stages"] * 2}, "two stages named 'a'"),
        ({"name": "p", "stages": [{"stage": f"s{n}", "module": "m"} for n in range(1001)]}, "1001 stages; 1000 is the"),
        ({"name": "p", "stages": [{"module": "m"}]}, "a stage has no 'stage'"),
        ({"name": "p", "stages": [{"stage": "a"}]}, "stage 'a' has no 'module'"),
        ({**one(), "name": "../p"}, "cannot name a pipeline"),
        ({**one(), "stage": 1}, "the pipeline has the unknown key 'stage'; did you mean 'stages'"),
        (one(stage="a/b"), "'a/b' cannot name a stage"),
        (one(stage=".."), "cannot name a stage"),
        (one(stage=7), "7 cannot name a stage"),
        (one(module=""), "stage 'a': module must name"),
        (one(need=[]), "stage 'a' has the unknown key 'need'; did you mean 'needs'"),
        (one(needs="b"), "stage 'a': needs must be a list"),
        (one(needs=["b"]), "stage 'a' needs 'b', which is no stage of this pipeline; known are: a"),
        (one(stage="train", needs=["trian"]), "did you mean 'train'"),
        (one(needs=["a"]), "circle: a -> a"),
        (one(config=[1]), "stage 'a': config must be a mapping"),
        (one(config={"x": {1: 2}}), r"stage 'a': config\.x has the key 1"),
        (one(timeout_seconds=0), "stage 'a': timeout_seconds must be a number"),
        (one(timeout_seconds="60"), "timeout_seconds must be a number"),
        (one(retry=3), "stage 'a': retry must be a mapping"),
        (one(retry={"attempts": 0}), "from 1 to 100, not 0"),
        (one(retry={"attempt": 3}), "did you mean 'attempts'"),
    ],
)
def test_what_is_wrong_is_named(values: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        PipelineSpecification.from_dict(values)


def test_a_thousand_stages_in_a_row_are_sorted() -> None:
    stages = [stage(f"s{n}", "append", (f"s{n - 1}",) if n else ()) for n in range(1000)]
    assert [one.stage for one in pipeline(*reversed(stages)).order] == [one.stage for one in stages]
    with pytest.raises(PipelineError, match="s0 -> s999 -> s998"):
        pipeline(stage("s0", "append", ("s999",)), *stages[1:])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0.5, True, "2"])
def test_retries_that_make_no_sense(value: Any) -> None:
    with pytest.raises(PipelineError, match=r"retry\.backoff_factor must be a number from 1 to 100"):
        RetrySpecification(backoff_factor=value)
    with pytest.raises(PipelineError, match=r"retry\.attempts"):
        RetrySpecification(attempts=value)


def test_waits_grow_up_to_an_hour() -> None:
    retry = RetrySpecification(100, 2.0, 3.0)
    assert [retry.wait_seconds(failures) for failures in (1, 2, 3, 99)] == [2.0, 6.0, 18.0, 3600.0]


def test_a_specification_does_not_change_with_the_values_it_was_made_from() -> None:
    config = {"deep": [1, 2]}
    one = StageSpecification("a", "m", None, config)
    config["deep"].append(3)
    assert one.config == {"deep": [1, 2]}
