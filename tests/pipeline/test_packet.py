# SPDX-License-Identifier: Apache-2.0
"""Packets and events: JSON goes through unchanged, everything else is refused by name; lines never tear."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.errors import PipelineError, StorageError
from open_autoglm.pipeline import EventLog, Packet, read_events

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), JSON), st.dictionaries(st.text(), JSON))
def test_json_goes_through_unchanged(payload: dict[str, Any], metadata: dict[str, Any]) -> None:
    packet = Packet("s", payload, metadata)
    assert Packet.from_dict(json.loads(json.dumps(packet.to_dict()))) == packet
    assert (packet.payload, packet.metadata) == (payload, metadata)


def _deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"d": value}
    return value


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"loss": math.nan}, "payload.loss is nan"),
        ({"a": [1, math.inf]}, r"payload\.a\[1\] is inf"),
        ({"a": {1: 2}}, "payload.a has the key 1"),
        ({"a": Path("x")}, "payload.a is a PosixPath.*path here"),
        ({"a": b"x"}, "payload.a is a bytes"),
        ({"a": {1, 2}}, "payload.a is a set"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        (_deep(10_000), "nested deeper"),
        ([1], "payload must be a mapping"),
        (None, "payload must be a mapping"),
    ],
)
def test_what_is_not_json_is_refused_by_name(payload: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Packet("s", payload)


@pytest.mark.parametrize("session", ["", None, 7])
def test_a_packet_needs_a_session(session: Any) -> None:
    with pytest.raises(PipelineError, match="session_id"):
        Packet(session)


@pytest.mark.parametrize(
    "values", [{}, {"session_id": "s"}, [], None, {"session_id": "s", "payload": 1, "metadata": {}}]
)
def test_what_is_no_packet(values: Any) -> None:
    with pytest.raises(PipelineError):
        Packet.from_dict(values)


def test_a_packet_is_its_own_copy() -> None:
    mine = {"list": [1], "tuple": (1, 2)}
    packet = Packet("s", mine, {"from": "here"})
    mine["list"].append(2)  # type: ignore[union-attr]
    assert packet.payload == {"list": [1], "tuple": [1, 2]}
    assert packet.with_payload({"x": 1}, more=2) == Packet("s", {"x": 1}, {"from": "here", "more": 2})


def _write_many(folder: Path, number: int) -> None:
    log = EventLog(folder)
    for index in range(200):
        log.append(f"stage{number}", {"index": index, "text": "x" * (37 * index % 9000)})


def test_lines_of_several_processes_never_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(tmp_path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for number in range(3):
        events = [event for event in read_events(tmp_path) if event["stage"] == f"stage{number}"]
        assert [event["index"] for event in events] == list(range(200))
        assert all(len(event["text"]) == 37 * event["index"] % 9000 for event in events)
    assert len((tmp_path / "events.jsonl").read_bytes().splitlines()) == 600


def test_following_gives_each_event_once_even_if_it_is_read_in_halves(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    written = log.append("a", {"text": "zwölf", "time": "mine", "stage": "mine"})
    assert (written["stage"], written["text"]) == ("a", "zwölf")
    assert written["time"] != "mine"
    assert log.follow() == [written]
    assert log.follow() == []
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"half": "zw' + "ö".encode()[:1])
        file.flush()
        assert log.follow() == []
        file.write("ö".encode()[1:] + b'lf"}\n')
    assert log.follow() == [{"half": "zwölf"}]
    log.skip_to_end()
    assert log.follow() == []
    log.close()


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append("a", {"number": 1})
    log.end_torn_line()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "2025-')
    log.end_torn_line()
    log.append("a", {"number": 2})
    log.close()
    assert [event["number"] for event in read_events(tmp_path)] == [1, 2]


def test_numbers_that_are_not_finite_become_null_in_events(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append(None, {"loss": math.nan, "more": [math.inf, 1.5]})
    log.close()
    (event,) = read_events(tmp_path)
    assert (event["stage"], event["loss"], event["more"]) == (None, None, [None, 1.5])


def test_a_folder_without_events_has_none(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    log = EventLog(tmp_path)
    with pytest.raises(StorageError, match=r"cannot write .*events\.jsonl: the disk is full"):
        log.append("a", {})
    os.close(log._descriptor)
