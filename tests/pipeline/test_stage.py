# SPDX-License-Identifier: Apache-2.0
"""The interface of stages, the catalogue, records in packets, and slots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from stages_for_tests import MODULES, Shout

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.placement import Capacity, Placement
from open_autoglm.pipeline.records import read_records, store_records
from open_autoglm.pipeline.specification import ResourceSpecification
from open_autoglm.pipeline.stage import Stage, StageCatalog, config_model_of, load_target, make_stage, packets_of


def test_a_catalogue_knows_names_and_imports_nothing_else() -> None:
    catalog = StageCatalog(MODULES)
    assert catalog.load("shout") is Shout
    assert catalog.target("shout") == "stages_for_tests:Shout"
    with pytest.raises(PipelineError, match=r"unknown module 'shot'; did you mean 'shout'\?"):
        catalog.load("shot")
    with pytest.raises(PipelineError, match="unknown module 'os:system'"):
        catalog.load("os:system")
    with pytest.raises(PipelineError, match=r"cannot be loaded: AttributeError"):
        catalog.load("missing")
    assert StageCatalog.of({"a": "m:x"}, {"a": "m:x", "b": "m:y"}) == {"a": "m:x", "b": "m:y"}
    with pytest.raises(PipelineError, match=r"two stages are called 'a': m:x and n:x"):
        StageCatalog.of({"a": "m:x"}, {"a": "n:x"})


@pytest.mark.parametrize("modules", [{"a b": "m:x"}, {"a": "m"}, {"a": "m:x()"}, {"a": "../m:x"}, {"": "m:x"}])
def test_what_a_catalogue_refuses(modules: dict[str, str]) -> None:
    with pytest.raises(PipelineError, match=r"cannot name|not of the form"):
        StageCatalog(modules)


def test_a_class_is_made_with_its_settings_and_a_function_with_none() -> None:
    stage = make_stage(load_target("stages_for_tests:Shout"), {"times": "3"})
    assert isinstance(stage, Stage)
    assert stage.config.times == 3  # type: ignore[attr-defined]
    assert config_model_of(Shout) is not None  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        make_stage(load_target("stages_for_tests:Shout"), {"tims": 3})
    assert isinstance(make_stage(load_target("stages_for_tests:append"), {}), Stage)
    with pytest.raises(PipelineError, match="class without a method invoke"):
        load_target("stages_for_tests:ShoutConfig")


def test_packets_of_what_a_stage_returned() -> None:
    packet = Packet("s")
    assert list(packets_of(packet, packet, "a")) == [packet]
    assert list(packets_of(iter([packet, packet]), packet, "a")) == [packet, packet]
    assert list(packets_of(iter([]), packet, "a")) == []
    for wrong in (None, {"a": 1}, "text", 5, [packet, 1]):
        with pytest.raises(PipelineError, match=r"stage 'a' returned a \w+; it must return a Packet"):
            list(packets_of(wrong, packet, "a"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=2), max_size=12), st.integers(0, 12))
def test_records_come_back_from_a_list_and_from_a_file(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], most: int
) -> None:
    path = tmp_path_factory.mktemp("records") / "r.jsonl"
    stored = store_records(iter(records), path, most_inline=most)
    assert isinstance(stored, list) == (len(records) <= most)
    assert json.loads(json.dumps(stored)) == stored
    assert list(read_records({"records": stored})) == records
    if isinstance(stored, dict):
        assert stored["count"] == len(records)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "payload.records must be a list of records.*and there is none"),
        ({"records": 5}, "payload.records must be a list"),
        ({"records": [{}, 5]}, r"payload.records\[1\] is a int, not a mapping"),
        ({"records": {"jsonl": 5}}, "payload.records must be a list"),
    ],
)
def test_what_are_no_records(payload: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        list(read_records(payload))


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": 1}\n[2]\n')
    with pytest.raises(PipelineError, match=r"r\.jsonl, line 2: a record must be a mapping"):
        list(read_records({"records": {"jsonl": str(path)}}))


def test_slots_go_to_the_most_urgent_and_large_ones_are_not_starved() -> None:
    placement = Placement(Capacity(2.0, 100, 1))
    order: list[str] = []

    def ask(name: str, cpu: float, priority: int = 0, token: object = None) -> ResourceSpecification:
        wanted = ResourceSpecification(cpu)
        placement.request(token or name, wanted, priority, lambda: order.append(name))
        return wanted

    first, second = ask("first", 1.0), ask("second", 1.0)
    large = ask("large", 2.0)
    small = ask("small", 0.5)
    ask("urgent", 0.5, 10)
    assert order == ["first", "second"]
    placement.release(first)
    assert order == ["first", "second", "urgent"]  # and not the small one, which came after the large one
    placement.release(second)
    placement.release(ResourceSpecification(0.5))
    assert order[3:] == ["large"]
    assert placement.withdraw("small") == 1
    placement.release(large)
    assert order[4:] == []
    assert placement.is_idle
    assert not Capacity(2.0, 100, 0).fits(ResourceSpecification(1.0, 0, 1))
    assert Capacity(2.0, 100, 0).fits(small)
