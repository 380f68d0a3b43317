# SPDX-License-Identifier: Apache-2.0
"""Spelling, doubts and near-duplicates: every change is counted and can be undone, nothing else is changed."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, FindingKind, PreparedData, prepare
from open_autoglm.data.changes import ChangeLog, save_changes, undo_changes
from open_autoglm.data.doubts import is_placeholder, looks_cut_off, note_doubts
from open_autoglm.data.example_store import StoredExamples
from open_autoglm.data.findings import FindingLog
from open_autoglm.data.normalisation import COMPOSED, REMOVED, REPLACED, SPACED, normalise_text
from open_autoglm.data.time_order import parse_time
from open_autoglm.errors import StorageError
from open_autoglm.task import TaskKind

SPLITS = ("train", "valid", "test")
WORDS = [
    "river", "stone", "window", "garden", "letter", "music", "yellow", "basket", "morning", "paper", "silver",
    "mountain", "doctor", "table", "orange", "castle", "winter", "pencil", "harbour", "engine", "ladder", "forest",
    "bottle", "candle", "thunder", "island", "mirror", "pocket", "saddle", "velvet",
]  # fmt: skip


def pair(question: str, answer: str, row: int = 1) -> Example:
    return Example((Message(Role.USER, question), Message(Role.ASSISTANT, answer)), f"a.csv:{row}")


def sentence(seed: int, count: int = 9) -> str:
    return " ".join(random.Random(seed).sample(WORDS, count))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "made", "done"),
    [
        ("plain text\nwith lines\tand 中文，全角。", "plain text\nwith lines\tand 中文，全角。", []),
        ("cafe\u0301", "café", [COMPOSED]),
        ("a\u00a0b\r\nc\rd", "a b\nc\nd", [SPACED]),
        ("好\u200b评\ufeff\x00", "好评", [REMOVED]),
        ("x\ud83dy", "x\ufffdy", [REPLACED]),
        ("👨‍👩‍👧 می‌خواهم", "👨‍👩‍👧 می‌خواهم", []),
    ],
)
def test_one_spelling(text: str, made: str, done: list[str]) -> None:
    assert normalise_text(text) == (made, done)


@given(st.text(max_size=40))
def test_spelling_twice_is_spelling_once(text: str) -> None:
    made, _ = normalise_text(text)
    assert normalise_text(made) == (made, [])


def test_everything_done_is_counted_and_undone(tmp_path: Path) -> None:
    rows = [{"text": sentence(n), "label": ["good", "bad"][n % 2]} for n in range(80)]
    rows[3]["text"] = "cafe\u0301 \u200b" + rows[3]["text"]
    rows[40] = dict(rows[4])
    rows[41] = {"text": rows[5]["text"].upper() + "!", "label": rows[5]["label"]}
    rows[42] = {"text": rows[6]["text"] + ".", "label": "bad"}
    rows[50]["label"] = "\u200b\ufeff"
    held_out = [{"text": sentence(n), "label": ["good", "bad"][n % 2]} for n in range(200, 212)]
    held_out.append({"text": rows[8]["text"], "label": rows[8]["label"]})
    held_out.append({"text": rows[10]["text"].title(), "label": rows[10]["label"]})
    prepared = prepare(
        write(tmp_path / "a.jsonl", rows), test=write(tmp_path / "t.jsonl", held_out), task="classification"
    )
    found = {(f.kind, f.what): f.rows.get("a.jsonl") for f in prepared.report.findings}
    for kind, what, where in (
        (FindingKind.REPAIR, COMPOSED, "4"),
        (FindingKind.DROP, "empty answer", "51"),
        (FindingKind.DUPLICATE, "same input and answer as an earlier row; removed", "41"),
        (FindingKind.NEAR_DUPLICATE, "nearly the same input and the same answer as an earlier row; kept", "42"),
        (FindingKind.CONTRADICTION, "nearly the same input as another row, other answer; kept", "7, 43"),
        (FindingKind.LEAK, "also in the test split; removed from train", "9"),
        (FindingKind.LEAK, "nearly the same as a row of the test split; kept", "11"),
    ):
        assert found.get((kind, what)) == where, (what, found)
    prepared.save(tmp_path / "run")
    undone = undo_changes({s: getattr(prepared, s) for s in SPLITS}, tmp_path / "run")
    assert [{"text": e.input_text, "label": e.answer} for e in undone["train"]] == rows
    assert [{"text": e.input_text, "label": e.answer} for e in undone["test"]] == held_out
    loaded = PreparedData.load(tmp_path / "run")
    assert undo_changes({s: getattr(loaded, s) for s in SPLITS}, tmp_path / "run") == undone
    on_disk = undo_changes(
        {s: getattr(loaded, s) for s in SPLITS}, tmp_path / "run", scratch=tmp_path / "x", in_memory=0
    )
    assert on_disk == undone and on_disk["train"].store.is_on_disk and not undone["train"].store.is_on_disk
    assert list((tmp_path / "x").iterdir()) == []
    fewer = prepare(tmp_path / "a.jsonl", test=tmp_path / "t.jsonl", task="classification", remove_near_duplicates=True)
    assert sum(fewer.report.split_sizes.values()) == sum(prepared.report.split_sizes.values()) - 2
    with pytest.raises(StorageError, match="does not belong to these examples"):
        undo_changes({s: getattr(fewer, s) for s in SPLITS}, tmp_path / "run")
    with pytest.raises(StorageError, match=r"changes\.jsonl"):
        undo_changes({}, tmp_path)


def test_changes_of_all_sorts_come_back(tmp_path: Path) -> None:
    read = StoredExamples.of([pair(f"q{n}", f"a{n}", n) for n in range(6)])
    log = ChangeLog()
    log.read("train", read)
    fewer = read.take(np.array([0, 1, 3, 4, 5]))
    log.removed(read, fewer, "duplicate")
    changed = fewer.mapped(lambda e: pair(e.input_text + "!", e.answer, 1) if e.answer == "a4" else e)
    log.edited(fewer, changed, "masked")
    splits = {"train": changed[2:], "valid": changed[:2]}
    save_changes(log.finish(splits), tmp_path)
    assert undo_changes(splits, tmp_path) == {"train": list(read)}


@pytest.mark.parametrize("place", [-1, 10**12, 1.5, "0", None])
def test_a_change_of_a_row_that_cannot_be_is_refused(tmp_path: Path, place: object) -> None:
    line = {"change": "order", "split": "train", "places": [["train", [place]]]}
    (tmp_path / "changes.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(StorageError, match="does not belong to these examples"):
        undo_changes({"train": [pair("q", "a")]}, tmp_path)


def test_lengths_far_from_the_others_are_noted() -> None:
    rows = [pair(sentence(n), "Yes, that is it.", n) for n in range(1, 60)]
    rows.append(pair("word " * 500, "Yes, that is it.", 60))
    rows.append(pair(sentence(3), "Yes. " * 200, 61))
    log = FindingLog()
    note_doubts(rows, TaskKind.INSTRUCTION, log)
    assert {(f.what, f.rows["a.csv"]) for f in log.findings() if f.kind is FindingKind.OUTLIER} == {
        ("input much longer than the others; kept", "60"),
        ("answer much longer than the others; kept", "61"),
    }


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        ("It is done.", False),
        ("好的。", False),
        ("It is done and", True),
        ("首先，打开设置，", True),
        ("It is do", True),
        ("```python\nx = 1", True),
        ("```python\nx = 1\n```", False),
        ("", False),
    ],
)
def test_answers_that_stop_in_the_middle(answer: str, cut: bool) -> None:
    assert looks_cut_off(answer, must_end=True) is cut


def test_doubtful_answers_are_noted_where_answers_are_prose() -> None:
    rows = [pair(f"问题{n}", f"这是第{n}个问题的完整回答，请您参考。", n) for n in range(1, 60)]
    rows += [pair("q", "这是一个没有写完的很长的回答，因为", 60), pair("r", "无", 61)]
    log = FindingLog()
    note_doubts(rows, TaskKind.INSTRUCTION, log)
    doubts = {
        f.what.split(",")[0].split(":")[0]: f.rows["a.csv"] for f in log.findings() if f.kind is FindingKind.DOUBTFUL
    }
    assert doubts == {"answer seems cut off": "60", "answer only stands for one": "61"}
    assert is_placeholder(" N/A ") and not is_placeholder("not available")
    silent = FindingLog()
    note_doubts([pair(f"t{n}", "无") for n in range(50)], TaskKind.CLASSIFICATION, silent)
    assert silent.findings() == ()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1970-01-02", 86400.0),
        ("1970/1/2 00:00:01", 86401.0),
        ("1970年1月2日", 86400.0),
        ("1970-01-02T01:00:00+01:00", 86400.0),
        (1_600_000_000, 1.6e9),
        ("1600000000000", 1.6e9),
        (7, None),
        ("soon", None),
        (None, None),
        ("2021-13-45", None),
    ],
)
def test_times_are_read_with_the_year_first(value: Any, seconds: float | None) -> None:
    assert parse_time(value) == seconds


def test_a_time_column_splits_by_time(tmp_path: Path) -> None:
    days = list(range(100))
    random.Random(0).shuffle(days)
    rows = [
        {"时间": f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}", "text": sentence(day), "label": ["x", "y"][day % 2]}
        for day in days
    ]
    # What was said before is not new, however late it comes again.
    rows[days.index(99)]["text"] = rows[days.index(3)]["text"] + "!"
    prepared = prepare(
        write(tmp_path / "a.jsonl", rows), columns={"input": "text", "output": "label"}, task="classification"
    )
    when = {split: [days[int(e.source.split(":")[1]) - 1] for e in getattr(prepared, split)] for split in SPLITS}
    assert sorted(when["test"]) == list(range(90, 99))
    assert sorted(when["valid"]) == list(range(80, 90))
    assert 99 in when["train"]
    assert "by '时间'" in prepared.report.split_by
