# SPDX-License-Identifier: Apache-2.0
"""The stages that work on records without a model: cleaning, rules, the gate, files."""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from open_autoglm.errors import DataError, OpenAutoGLMError, PipelineError
from open_autoglm.pipeline.stages.text_cleaner import TextCleaner, TextCleanerConfig, text_of_html

Invoke = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<p>Hello <b>you</b></p><p>there</p>", "Hello you\nthere"),
        ("a &amp; b &lt;c&gt;", "a & b <c>"),
        ("x<script>alert('<b>')</script>y<style>p{}</style>", "xy"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<a href='x>y'>link</a><br/>next", "link\nnext"),
        ("北京\u0000<br>天气", "北京\n天气"),
        ("  e\u0301  \t two  ", "é two"),
    ],
)
def test_html_and_stray_characters_go(invoke: Invoke, text: str, clean: str) -> None:
    records = invoke("text_cleaner", {"remove_html": True}, {"records": [{"id": text, "body": text, "n": 3}]})
    assert records["records"] == [{"id": text, "body": clean, "n": 3}]


@given(st.text())
def test_text_that_was_escaped_comes_back(text: str) -> None:
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert text_of_html(html.escape(expected)) == html.unescape(html.escape(expected))


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    cleaner = TextCleaner(TextCleanerConfig())
    assert cleaner.clean(cleaner.clean(text)) == cleaner.clean(text)


def test_only_the_named_fields_are_cleaned(invoke: Invoke) -> None:
    config = {"fields": ["a"], "lower": True, "longest": 3}
    records = [{"id": 1, "a": "ABCDE", "b": "ABC"}]
    assert invoke("text_cleaner", config, {"records": records})["records"] == [{"id": 1, "a": "abc", "b": "ABC"}]
    with pytest.raises(PipelineError, match="record 1 has no field 'z'"):
        invoke("text_cleaner", {"fields": ["z"]}, {"records": records})


def test_rules_set_drop_and_fail(invoke: Invoke) -> None:
    config = {
        "rules": [
            {"when": "record.amount > 100", "set": {"route": "manual"}, "name": "large"},
            {"when": "record.route is defined and record.vip", "set": {"route": "desk"}, "stop": True},
            {"when": '"spam" in record.text', "drop": True},
            {"when": "record.amount < 0", "fail": "an amount below zero"},
        ]
    }
    records = [
        {"id": 1, "amount": 5, "vip": False, "text": "a"},
        {"id": 2, "amount": 500, "vip": True, "text": "spam"},
        {"id": 3, "amount": 5, "vip": False, "text": "spam"},
    ]
    out = invoke("rules", config, {"records": records})
    assert out["records"] == [records[0], {**records[1], "route": "desk", "rules": ["large", "rule 2"]}]
    assert out["dropped"] == [{**records[2], "rules": ["rule 3"]}]
    with pytest.raises(PipelineError, match="record 9: rule 4: an amount below zero"):
        invoke("rules", config, {"records": [{"id": 9, "amount": -1, "vip": 0, "text": ""}]})
    with pytest.raises(PipelineError, match=r"record 8: the condition .* lacks"):
        invoke("rules", config, {"records": [{"id": 8}]})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"when": "payload.x > 1", "drop": True}, "unknown name 'payload'"),
        ({"when": "record.x", "set": {}}, "needs one of set, drop and fail"),
        ({"when": "record.f()", "drop": True}, "cannot hold a call"),
    ],
)
def test_rules_with_a_fault_are_refused(invoke: Invoke, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        invoke("rules", {"rules": [rule]}, {"records": []})


@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0, 1))
def test_the_gate_loses_nothing(values: list[float], threshold: float) -> None:
    from open_autoglm.pipeline.packet import Packet
    from open_autoglm.pipeline.stages.confidence_gate import ConfidenceGate, ConfidenceGateConfig

    gate = ConfidenceGate(ConfidenceGateConfig(threshold=threshold))
    context: Any = type("Context", (), {"idempotency_key": "k", "stage_folder": Path("/nowhere")})()
    out = gate.invoke(
        Packet("s", {"records": [{"id": n, "confidence": one} for n, one in enumerate(values)]}), context
    ).payload
    assert {one["id"] for one in out["records"]} == {n for n, one in enumerate(values) if one >= threshold}
    assert {one["id"] for one in out["held"]} == {n for n, one in enumerate(values) if one < threshold}


def test_the_gate_marks_and_fails(invoke: Invoke) -> None:
    records = {"records": [{"id": 1, "confidence": 0.2}, {"id": 2, "confidence": 1}]}
    marked = invoke("confidence_gate", {"threshold": 0.5, "below": "mark"}, records)["records"]
    assert [one["accepted"] for one in marked] == [False, True]
    with pytest.raises(PipelineError, match=r"record 1: confidence 0\.2 is below 0\.5"):
        invoke("confidence_gate", {"threshold": 0.5, "below": "fail"}, records)
    with pytest.raises(PipelineError, match="record 3 has no number in 'confidence'"):
        invoke("confidence_gate", {"threshold": 0.5}, {"records": [{"id": 3, "confidence": "high"}]})


def test_files_are_read_in_their_formats(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "t": "x"}\n\n{"t": "y"}\n')
    (tmp_path / "b.json").write_text('[{"id": "j", "t": "z"}]')
    (tmp_path / "c.csv").write_text('id,t\n7,"a, ""b"""\n')
    (tmp_path / "d.txt").write_text("one\n\ntwo\n")
    records = invoke("file_source", {"path": str(tmp_path / "*.*")})["records"]
    assert records == [
        {"id": 1, "t": "x"},
        {"t": "y", "id": "a.jsonl:3"},
        {"id": "j", "t": "z"},
        {"id": "7", "t": 'a, "b"'},
        {"text": "one", "id": "d.txt:1"},
        {"text": "two", "id": "d.txt:3"},
    ]
    assert invoke("file_source", {}, {"files": [str(tmp_path / "b.json")]})["records"][0]["id"] == "j"


def test_only_new_files_are_taken(invoke: Invoke, tmp_path: Path) -> None:
    config = {"path": str(tmp_path / "*.txt"), "only_new": True}
    (tmp_path / "a.txt").write_text("one\n")
    assert len(invoke("file_source", config)["records"]) == 1
    assert invoke("file_source", config)["records"] == []
    (tmp_path / "b.txt").write_text("two\n")
    assert invoke("file_source", config)["files"] == [str(tmp_path / "b.txt")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "this is not JSON"),
        ("a.jsonl", b"[1]\n", "row 1: a list is no record"),
        ("a.csv", b"a,b\n1\n", "another number of columns"),
        ("a.txt", b"\xff\xfe\xff\n", "is not UTF-8"),
        ("a.xyz", b"x", "give config.format"),
        ("a.jsonl", b'{"id": 1}\n{"id": 1}\n', "row 2: the id 1 was there before"),
    ],
)
def test_files_with_a_fault_are_named(invoke: Invoke, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        invoke("file_source", {"path": str(tmp_path / name)})
    assert name in str(caught.value)


def test_the_sink_writes_each_packet_once(invoke: Invoke, tmp_path: Path) -> None:
    records = {"records": [{"id": 1, "s": {"a": 1}}, {"id": 2, "s": {"a": 2}}]}
    config = {"path": str(tmp_path / "out") + "/"}
    for key in ("run/sink/0", "run/sink/1", "run/sink/1"):
        invoke("file_sink", config, records, key=key)
    files = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in files] == ["run-sink-0.jsonl", "run-sink-1.jsonl"]
    assert [json.loads(line) for line in files[0].read_text().splitlines()] == records["records"]
    one = {"path": str(tmp_path / "one.csv"), "format": "csv", "columns": ["s", "id"]}
    assert invoke("file_sink", one, records)["written"] == 2
    with (tmp_path / "one.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["s", "id"], ['{"a": 1}', "1"], ['{"a": 2}', "2"]]
    with pytest.raises(OpenAutoGLMError, match="each over the one before"):
        invoke("file_sink", one, records, key="run/sink/1")
