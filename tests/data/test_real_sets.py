# SPDX-License-Identifier: Apache-2.0
"""Published data sets are read for what they are, without a hint, from a small sample of each as from all of it."""

import os
from pathlib import Path

import pytest

from open_autoglm.data.detection import check_sure, detect_task
from open_autoglm.data.findings import FindingLog
from open_autoglm.data.layouts import find_layout
from open_autoglm.data.readers import open_rows
from open_autoglm.data.report import name_language
from open_autoglm.data.rows import FileRows
from open_autoglm.data.shapes import read_examples
from open_autoglm.task import TaskKind

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OPEN_AUTOGLM_TEST_DATA", ROOT.parent / "shared" / "data"))
SAMPLE = 120

SETS = {
    "snips/train.jsonl": (TaskKind.EXTRACTION, "en", "prompt", "response"),
    "snips/valid.jsonl": (TaskKind.EXTRACTION, "en", "prompt", "response"),
    "banking77/train.csv": (TaskKind.CLASSIFICATION, "en", "text", "category"),
    "chnsenticorp/train.tsv": (TaskKind.CLASSIFICATION, "zh", "text_a", "label"),
    "alpaca-zh/alpaca_zh_demo.json": (TaskKind.INSTRUCTION, "zh", "instruction", "output"),
    "toolcall-en/glaive_toolcall_en_demo.json": (TaskKind.TOOL_CALLS, "en", "conversations", "conversations"),
    "squad-zh/cmrc2018_trial.json": (TaskKind.QUESTION_ANSWERING, "zh", "question", "answers"),
    "scitldr/test.jsonl": (TaskKind.SUMMARISATION, "en", "source", "target"),
    "tabular/titanic.csv": (TaskKind.TABULAR, "en", None, "Survived"),
    "text/tinyshakespeare.txt": (TaskKind.PLAIN_TEXT, "en", None, None),
    "text/clue_corpus_small_sample.txt": (TaskKind.PLAIN_TEXT, "zh", None, None),
}

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no published sets in OPEN_AUTOGLM_TEST_DATA")


@needs_data
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("part", ["first", "spread", "sample"])
def test_a_published_set_is_read_for_what_it_is(name: str, part: str) -> None:
    kind, language, source, target = SETS[name]
    path = DATA / name
    whole = open_rows(path).sample()
    step = 1 if part == "first" else max(1, len(whole) // SAMPLE)
    rows = whole.rows if part == "sample" else whole.rows[::step][:SAMPLE]
    file = FileRows(path, whole.name, whole.format, whole.encoding, rows, whole.columns, whole.repairs)
    layout = find_layout(file)
    assert (layout.input_column, layout.output_column) == (source, target)
    examples = read_examples(file, layout, FindingLog())
    detection = detect_task(examples, layout)
    check_sure(detection, path)
    assert detection.kind is kind, detection.reason
    assert detection.runner_up is not kind and detection.reason
    assert name_language(f"{example.input_text} {example.answer}" for example in examples) == language
