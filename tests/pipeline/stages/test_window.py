# SPDX-License-Identifier: Apache-2.0
"""`window` against windows computed from the whole stream at once, however it is cut into runs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.window import Window, WindowConfig

Invoke = Callable[..., dict[str, Any]]


def windows(invoke: Invoke, config: dict[str, Any], records: list[dict[str, Any]]) -> list[Any]:
    return invoke("window", config, {"records": records})["records"]


def test_counted_windows_go_on_from_run_to_run(invoke: Invoke) -> None:
    config = {"size": 3, "every": 2, "key": "user", "aggregates": {"total": {"of": "n", "function": "sum"}}}
    records = [{"id": n, "user": "ab"[n % 2], "n": n} for n in range(12)]
    assert windows(invoke, config, records[:5]) == [
        {"id": "a@0", "key": "a", "start": 0, "end": 3, "count": 3, "total": 6, "records": records[0:5:2]}
    ]
    rest = windows(invoke, config, records[5:])
    assert [(one["id"], one["total"]) for one in rest] == [("b@0", 9), ("a@2", 18), ("b@2", 21)]
    assert windows(invoke, {**config, "flush": True}, [])[0]["count"] == 2


def test_windows_by_time_end_when_time_has_passed_and_say_what_is_late(invoke: Invoke) -> None:
    config = {
        "size": "10m", "time": "at", "lateness": "2m", "keep_records": False,
        "aggregates": {"mean": {"of": "n", "function": "mean"}, "last": {"of": "n", "function": "last"}},
    }  # fmt: skip

    def run(*minutes: int, **more: Any) -> dict[str, Any]:
        records = [{"id": m, "at": f"2026-03-29T01:{m:02}:00+01:00", "n": m} for m in minutes]
        return invoke("window", {**config, **more}, {"records": records})

    first = run(1, 5, 11, 9)
    assert (first["records"], first["waiting"]) == ([], 4), "the ninth minute is in time, two minutes are allowed"
    second = run(12, 4)
    assert second["records"] == [
        {
            "id": "2026-03-29T00:00:00Z", "key": None, "start": "2026-03-29T00:00:00Z", "end": "2026-03-29T00:10:00Z",
            "count": 3, "mean": 5.0, "last": 9,
        }
    ]  # fmt: skip
    assert [record["id"] for record in second["late"]] == [4]
    with pytest.raises(PipelineError, match="record 3 comes after the end of its window; raise lateness"):
        run(3, late="fail")
    flushed = run(flush=True)
    assert [(one["start"][11:16], one["count"]) for one in flushed["records"]] == [("00:10", 2)]
    assert [record["id"] for record in run(15)["late"]] == [15], "what was flushed is over"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    times=st.lists(st.tuples(st.integers(0, 200), st.sampled_from("ab")), max_size=40),
    size=st.integers(1, 30),
    step=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    lateness=st.integers(0, 20),
)
def test_any_stream_however_it_is_cut(
    tmp_path: Path, times: list[tuple[int, str]], size: int, step: int, cuts: list[int], lateness: int
) -> None:
    step = min(step, size)
    config = WindowConfig(size=size, every=step, time="at", key="k", lateness=lateness, flush=False)
    stage, cursors, found, late = Window(config), {}, [], []
    records = [{"id": number, "at": at, "k": key} for number, (at, key) in enumerate(times)]
    edges = [0, *sorted(min(cut, len(records)) for cut in cuts), len(records)]
    for start, end in itertools.pairwise(edges):
        context = StageContext(tmp_path, "w", {}, 1, "r/w/0", None, logging.getLogger("t"), None, cursors=cursors)  # type: ignore[arg-type]
        payload = stage.invoke(Packet("s", {"records": records[start:end]}), context).payload
        found += payload["records"]
        late += [one["id"] for one in payload["late"]]
        cursors["before"] = cursors.pop("next")
    expected, expected_late, ended, watermark = [], [], set(), float("-inf")
    members: dict[tuple[int, str], list[int]] = {}
    for record in records:
        begins = [n * step for n in range(-size // step - 1, 201) if n * step <= record["at"] < n * step + size]
        if max(begins) + size <= watermark:
            expected_late.append(record["id"])
            continue
        for begin in begins:
            if begin + size > watermark:
                members.setdefault((begin, record["k"]), []).append(record["id"])
        watermark = max(watermark, record["at"] - lateness)
        for window in sorted(members):
            if window[0] + size <= watermark and window not in ended:
                ended.add(window)
                expected.append((f"{window[1]}@", sorted(members[window])))
    assert late == expected_late
    assert [(one["id"][:2], sorted(r["id"] for r in one["records"])) for one in found] == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": "10m"}, "no number of records"),
        ({"size": 0}, "no number of records"),
        ({"size": 3, "every": 4}, "would be in none"),
        ({"size": 3, "lateness": "1m"}, "windows by time"),
        ({"size": "10m", "time": "at", "every": "1ms"}, "more than 1000 windows"),
        ({"size": 3, "aggregates": {"count": {"of": "n", "function": "sum"}}}, "of its own"),
    ],
)
def test_settings_with_a_fault_are_refused(invoke: Invoke, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        windows(invoke, config, [])


def test_what_cannot_be_placed_is_said(invoke: Invoke) -> None:
    config = {"size": "1h", "time": "at"}
    for record, message in (
        ({"id": 1}, "record 1 has no field 'at'"),
        ({"id": 1, "at": "yesterday"}, "record 1: 'yesterday' in 'at' is no time"),
        ({"id": 1, "at": True}, "is no time"),
        ({"id": 1, "at": 1e300}, "is no time"),
    ):
        with pytest.raises(PipelineError, match=message):
            windows(invoke, config, [record])
    with pytest.raises(PipelineError, match=r"most_waiting is 2"):
        windows(invoke, {"size": 10, "most_waiting": 2}, [{"id": n} for n in range(3)])
    windows(invoke, {"size": 2}, [{"id": 1}])
    with pytest.raises(PipelineError, match="begun with other settings"):
        windows(invoke, {"size": 3}, [{"id": 1}])
    with pytest.raises(PipelineError, match="one after the other"):
        invoke("window", {"size": 2}, {"records": []}, key="run/stage/1")
