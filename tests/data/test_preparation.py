# SPDX-License-Identifier: Apache-2.0
"""The face of the room: what `prepare` hands on can be saved, hashed and read again the same way."""

import csv
import dataclasses
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from open_autoglm.chat.messages import Role
from open_autoglm.data import PreparedData, load_examples, prepare
from open_autoglm.data.example_store import StoredExamples
from open_autoglm.errors import ConfigurationError, DataError, StorageError
from open_autoglm.task import Task, TaskKind

SNIPS = Path(__file__).parents[2] / "examples" / "snips"


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_snips_is_understood_and_accounted_for(snips: PreparedData) -> None:
    report = snips.report
    assert snips.task.kind is TaskKind.EXTRACTION
    assert (snips.task.input_column, snips.task.output_column) == ("prompt", "response")
    assert report.confidence > 0.95
    assert report.language == "en"
    assert (len(snips.valid), len(snips.test)) == (700, 700)
    counts = report.to_dict()["counts"]
    removed = sum(f.count for f in report.findings if f.what.endswith(("; removed", "removed from train")))
    assert len(snips.train) + removed == 13_084
    assert (counts["drop"], counts["unseen"]) == (0, 0)
    assert snips.train[0].source == "train.jsonl:1"
    assert [message.role for message in snips.train[0].messages] == [Role.USER, Role.ASSISTANT]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_held_out_answers_keep_their_value(snips: PreparedData) -> None:
    lines = (SNIPS / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for example, line in zip(snips.test, lines, strict=True):
        row = json.loads(line)
        assert example.input_text == row["prompt"].strip()
        assert json.loads(example.answer) == json.loads(row["response"])


def test_prepared_data_is_saved_and_loaded(snips: PreparedData, tmp_path: Path) -> None:
    snips.save(tmp_path / "data")
    loaded = PreparedData.load(tmp_path / "data")
    assert loaded == snips
    assert loaded.digest() == snips.digest()
    (tmp_path / "data" / "task.json").write_text("{}")
    with pytest.raises(StorageError, match="does not hold prepared data"):
        PreparedData.load(tmp_path / "data")
    with pytest.raises(StorageError, match=r"train\.jsonl"):
        PreparedData.load(tmp_path / "nowhere")


def test_the_digest_is_of_the_examples_and_not_of_their_place(tmp_path: Path) -> None:
    rows = [{"prompt": f"question number {n}", "response": f"answer {n}, at some length"} for n in range(50)]
    first = prepare(write_lines(tmp_path / "a.jsonl", rows))
    assert prepare(write_lines(tmp_path / "b.jsonl", rows)).digest() == first.digest()
    table = write_csv(tmp_path / "c.csv", ["prompt", "response"], [list(row.values()) for row in rows])
    assert prepare(table).digest() == first.digest()
    rows[3]["response"] = "another answer"
    assert prepare(write_lines(tmp_path / "a.jsonl", rows)).digest() != first.digest()
    assert prepare(tmp_path / "b.jsonl", seed=1).digest() != first.digest()


def test_examples_for_scoring_are_read_like_the_training_file(snips: PreparedData, tmp_path: Path) -> None:
    in_memory = load_examples(SNIPS / "test.jsonl", snips.task)
    assert in_memory == list(snips.test)
    on_disk = load_examples(SNIPS / "test.jsonl", snips.task, in_memory=0)
    assert isinstance(on_disk, StoredExamples) and on_disk.store.is_on_disk and on_disk == in_memory
    assert [e.answer for e in load_examples(SNIPS / "test.jsonl")][:50] == [e.answer for e in snips.test][:50]
    few = write_lines(tmp_path / "few.jsonl", [{"prompt": "play it", "response": {"slots": {}, "intent": "PlayMusic"}}])
    assert [e.answer for e in load_examples(few, snips.task)] == ['{"intent": "PlayMusic", "slots": {}}']


def test_scoring_uses_the_columns_of_the_task_where_content_says_nothing(tmp_path: Path) -> None:
    task = Task(TaskKind.CLASSIFICATION, ("x", "y"), None, "what is said", "where it goes")
    path = write_csv(tmp_path / "a.csv", ["where it goes", "what is said", "by"], [[" y ", "hello there you", "me"]])
    (example,) = load_examples(path, task)
    assert (example.input_text, example.answer) == ("hello there you", "y")
    (other,) = load_examples(path, task, columns={"input": "by", "output": "where it goes"})
    assert other.input_text == "me"
    with pytest.raises(ConfigurationError, match="no column 'b'"):
        load_examples(path, task, columns={"input": "b", "output": "where it goes"})


def test_rows_left_out_of_scoring_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = Task(TaskKind.INSTRUCTION, (), None, "prompt", "response")
    path = write_lines(tmp_path / "a.jsonl", [{"prompt": "a", "response": ""}, {"prompt": "b", "response": "c"}])
    with caplog.at_level(logging.WARNING):
        assert [e.answer for e in load_examples(path, task)] == ["c"]
    assert "1 rows left out, empty answer: 1" in caplog.text
    with pytest.raises(DataError, match="no row has both"):
        load_examples(write_lines(tmp_path / "b.jsonl", [{"prompt": "a", "response": ""}]), task)
    with pytest.raises(DataError, match="plain text and question-answer pairs"):
        load_examples(path, Task(TaskKind.PLAIN_TEXT))


def test_answers_given_as_objects_and_in_chinese_columns_become_canonical(tmp_path: Path) -> None:
    rows = [
        {"工单": f"请把{n}号订单退款给我谢谢", "结果": {"动作": "退款", "订单": n, "备注": None}} for n in range(60)
    ]
    rows[5]["结果"] = json.dumps({"备注": None, "订单": 5, "动作": "退款"})
    prepared = prepare(write_lines(tmp_path / "工单.jsonl", rows))
    assert prepared.task.kind is TaskKind.EXTRACTION
    assert prepared.report.language == "zh"
    example = next(e for e in (*prepared.train, *prepared.valid, *prepared.test) if e.source.endswith(":6"))
    assert json.loads(example.answer)["订单"] == 5
    schema = prepared.task.answer_schema or {}
    assert schema["required"] == list(schema["properties"])
    assert schema["properties"]["动作"] == {"type": "string", "enum": ["退款"]}


def test_prepared_types_cannot_be_changed(snips: PreparedData) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        snips.task = Task(TaskKind.PLAIN_TEXT)  # type: ignore[misc]


def test_the_room_needs_no_torch_and_costs_nothing_to_import() -> None:
    program = (
        "import sys, open_autoglm.data, open_autoglm.cli.data;"
        "assert not {'torch', 'polars', 'transformers', 'numpy'} & set(sys.modules);"
        "import open_autoglm.data.preparation, open_autoglm.data.augmentation, open_autoglm.data.tokenizer;"
        "assert not {'torch', 'polars', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
