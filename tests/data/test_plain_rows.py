# SPDX-License-Identifier: Apache-2.0
"""Rows that are read the quick way give the same examples, findings and digests as the general way."""

import dataclasses
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import prepare
from open_autoglm.data.example import Example, pack_plain, unpack_plain
from open_autoglm.data.example_store import StoredExamples
from open_autoglm.data.findings import FindingLog
from open_autoglm.data.keys import digest_texts, example_digests, plain_digests, prompt_key, text_key
from open_autoglm.data.layouts import Layout, Shape
from open_autoglm.data.normalisation import normalise_example
from open_autoglm.data.plain_rows import PlainRowReader
from open_autoglm.data.rows import FileRows, Row
from open_autoglm.data.shapes import RowReader

CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["a question", " padded ", "a\u00a0b", "e\u0301", "x\r\ny", "行\n列", "", "\u200b", "\ud800", "a\0b"]
    ),
    st.none(),
    st.integers(),
    st.lists(st.text("ab ", max_size=3), max_size=3),
)
COLUMNS = ("prompt", "response", "more", "tools", "id")
LAYOUTS = [
    Layout(Shape.PAIR, "prompt", "response"),
    Layout(Shape.ALPACA, "prompt", "response", {"input": "more"}),
    Layout(Shape.LABELLED, "prompt", "response", {"second": "more"}),
    Layout(Shape.LABELLED, "prompt", "response", {"second": "more", "input": "id"}),
]


@settings(max_examples=300)
@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELLS, min_size=1), min_size=1, max_size=5),
)
def test_the_quick_way_is_the_general_way(layout: Layout, rows: list[dict[str, Any]]) -> None:
    file = FileRows(Path("a.jsonl"), "a.jsonl", "jsonl", "UTF-8", (), COLUMNS)
    quick = PlainRowReader.of(layout)
    assert quick is not None
    for number, values in enumerate(rows, start=1):
        if (pair := quick.read(values)) is None:
            continue
        log = FindingLog()
        [example] = RowReader(file, layout, log).read(Row(number, values))
        assert pack_plain(example) == (f"a.jsonl:{number}", "user", pair[0], "assistant", pair[1])
        assert normalise_example(example, log) is example
        assert log.findings() == ()


def test_most_rows_go_the_quick_way() -> None:
    layout = LAYOUTS[1]
    quick = PlainRowReader.of(layout)
    assert quick is not None
    assert quick.read({"prompt": "hello there", "response": "多行\n答案。", "more": ""}) == (
        "hello there",
        "多行\n答案。",
    )
    assert quick.read({"prompt": "a", "response": "b", "more": "c", "id": 5}) == ("a\nc", "b")
    assert quick.read({"prompt": "a", "response": "b", "more": "c", "tools": "[]"}) is None
    assert PlainRowReader.of(Layout(Shape.PAIR, "prompt", "response", {"system": "more"})) is None
    assert PlainRowReader.of(Layout(Shape.DIALOGUE, "messages", "messages")) is None


TURNS = st.lists(st.tuples(st.sampled_from(Role), st.text(st.characters(), max_size=20)), min_size=1, max_size=4)


@given(TURNS, st.text(max_size=8))
def test_packed_examples_are_the_examples(turns: list[tuple[Role, str]], source: str) -> None:
    example = Example(tuple(Message(role, text) for role, text in turns), source)
    plain = pack_plain(example)
    assert plain is not None
    again = unpack_plain(plain)
    assert (again, hash(again), repr(again), again.to_dict()) == (
        example, hash(example), repr(example), example.to_dict(),
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(again)) == example
    assert dataclasses.asdict(again) == dataclasses.asdict(example)
    assert dataclasses.replace(again.messages[0], learn=False).learn is False and again.messages[0].learn is True
    assert plain_digests(plain) == example_digests(example) == example_digests(again)
    outcome = digest_texts((f":{text_key(example.answer)}",))
    assert example_digests(example) == digest_texts(prompt_key(example)) + outcome + outcome


@pytest.mark.parametrize(
    "example",
    [
        Example((Message(Role.USER, "q"), Message(Role.ASSISTANT, "a", learn=False))),
        Example((Message(Role.USER, "q"), Message(Role.ASSISTANT, "a", reasoning="r"))),
        Example((Message(Role.ASSISTANT, "a"),), "", ({"function": {"name": "f"}},)),
        Example((Message(Role.ASSISTANT, "a"),), "", (), (Message(Role.ASSISTANT, "b"),)),
        Example((Message(Role.ASSISTANT, "a"),), "", (), (), False),
    ],
)
def test_what_holds_more_is_not_packed(example: Example) -> None:
    assert pack_plain(example) is None


def test_a_file_of_both_sorts_keeps_its_order(tmp_path: Path) -> None:
    generator = random.Random(4)
    rows = [
        {"prompt": f"{'  ' * (n % 3 == 0)}question {n} {generator.random()}", "response": f"answer {n}."}
        for n in range(2500)
    ]
    rows[10] = {"prompt": "only a question", "response": ""}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for in_memory in (1 << 30, 5000):
        prepared = prepare(path, task="instruction", in_memory=in_memory)
        assert isinstance(prepared.train, StoredExamples)
        assert prepared.train.store.is_on_disk is (in_memory == 5000)
        found = {e.source: e for split in (prepared.train, prepared.valid, prepared.test) for e in split}
        assert len(found) == 2499
        for number, row in enumerate(rows, start=1):
            if number != 11:
                example = found[f"a.jsonl:{number}"]
                assert (example.input_text, example.answer) == (row["prompt"].strip(), row["response"])
        sources = [int(e.source.partition(":")[2]) for e in prepared.train]
        assert sources == sorted(sources)
