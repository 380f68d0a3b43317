# SPDX-License-Identifier: Apache-2.0
"""Rows that are worth a look: lengths far from all others, answers that seem cut off or only stand for one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from open_autoglm.chat.format import last_user
from open_autoglm.data.example import Example
from open_autoglm.data.example_store import StoredExamples
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.task import TaskKind

_ROWS_LEAST: Final = 30
_DEVIATIONS: Final = 5.0
_TIMES: Final = 4.0
_SPREAD_LEAST: Final = 0.15
_ENDED_SHARE: Final = 0.9
_LIMIT_ROWS: Final = 5
_LIMIT_LENGTH: Final = 200
_TAIL: Final = 200
_PLACEHOLDER_LENGTH: Final = 40
_ENDS: Final = re.compile(
    r"[.!?。！？…~～:：;；)）\]】}>”’\"'`|*_」』》]\s*$|[\U0001f300-\U0001faff\u2600-\u27bf\ufe0f]\s*$"
)
_OPEN_ENDS: Final = re.compile(r"[,，、;；:：(（\[【{<“‘「『《-]\s*$|\b(?:and|or|the|of|to|with)\s*$", re.IGNORECASE)
_PLACEHOLDERS: Final = frozenset((
    "n/a", "na", "none", "null", "nil", "nan", "-", "--", "?", "...", "…", "tbd", "todo", "undefined", "unknown",
    "<noinput>", "无", "没有", "暂无", "空", "未知", "待补充", "略",
))  # fmt: skip
_FREE: Final = frozenset((
    TaskKind.INSTRUCTION, TaskKind.DIALOGUE, TaskKind.SUMMARISATION, TaskKind.QUESTION_ANSWERING, TaskKind.PREFERENCE,
))  # fmt: skip
_GUIDED: Final = frozenset((TaskKind.EXTRACTION, TaskKind.CLASSIFICATION, TaskKind.TABULAR))
_SENTENCES: Final = _FREE - {TaskKind.QUESTION_ANSWERING}


def note_doubts(examples: Sequence[Example], kind: TaskKind, log: FindingLog) -> None:
    """Note what is odd about the lengths and answers of a split. Nothing is changed."""
    examples = StoredExamples.of(examples)
    if kind is not TaskKind.PLAIN_TEXT:
        _note_outliers(examples, examples.input_lengths, "input", log)
    if kind in _FREE:
        _note_outliers(examples, examples.answer_lengths, "answer", log)
        for example in examples.take(examples.answer_lengths <= _PLACEHOLDER_LENGTH):
            if is_placeholder(example.answer) and not example.messages[-1].tool_calls:
                _doubt(log, example, "answer only stands for one, such as n/a or 无; kept")
    if kind in _SENTENCES:
        _note_cut_off(examples, log)
    _note_thoughts(examples, kind, log)


def _note_thoughts(examples: StoredExamples, kind: TaskKind, log: FindingLog) -> None:
    """Reasoning that training cannot use."""
    if not examples.store.holds_reasoning:
        return
    for example in examples:
        places = [place for place, message in enumerate(example.messages) if message.reasoning]
        if places and kind in _GUIDED:
            _doubt(log, example, "reasoning is not learnt: guided answers leave no room for it")
        elif places and places[0] < last_user(example.messages):
            _doubt(log, example, "answers with reasoning before the last question are context only; not learnt")


def is_placeholder(answer: str) -> bool:
    """Whether an answer says only that there is none."""
    return answer.strip().casefold() in _PLACEHOLDERS


def looks_cut_off(answer: str, *, must_end: bool) -> bool:
    """Whether an answer stops in the middle: after a comma or an opening sign, inside a block of code, or in a word.

    must_end: whether the answer should end with the sign of an end, as the others do.
    """
    text = answer.rstrip()
    if not text:
        return False
    if text.count("```") % 2:
        return True
    end = text[-_TAIL:]  # what decides stands there, and an answer may be long
    if must_end and _OPEN_ENDS.search(end) and not text.endswith((":", "：", ";", "；", "-")):
        return True
    return must_end and _ENDS.search(end) is None and "\n" not in text


def _note_outliers(examples: StoredExamples, lengths: np.ndarray, name: str, log: FindingLog) -> None:
    """Five deviations, by median and MAD of the logarithm, and four times or a quarter of the median."""
    if len(examples) < _ROWS_LEAST:
        return
    logarithms = np.log1p(np.asarray(lengths, dtype=np.float64))
    middle = float(np.median(logarithms))
    spread = max(_SPREAD_LEAST, 1.4826 * float(np.median(np.abs(logarithms - middle))))
    far = _DEVIATIONS * spread
    far = max(far, math.log(_TIMES))
    places = np.flatnonzero(np.abs(logarithms - middle) > far)
    for place, example in zip(places.tolist(), examples.take(places), strict=True):
        size = "longer" if logarithms[place] > middle else "shorter"
        what = f"{name} much {size} than the others; kept"
        log.note_source(FindingKind.OUTLIER, what, example.source)


def _note_cut_off(examples: StoredExamples, log: FindingLog) -> None:
    lengths = examples.answer_lengths
    is_prose = np.zeros(len(examples), dtype=np.bool_)
    endings = 0
    for place, example in enumerate(examples):
        if tail := example.answer[-_TAIL:].rstrip() or example.answer.rstrip():
            is_prose[place] = True
            endings += _ENDS.search(tail[-_TAIL:]) is not None
    count = int(is_prose.sum())
    if count < _ROWS_LEAST:
        return
    ended = endings / count
    longest = int(lengths.max())
    at_limit = longest >= _LIMIT_LENGTH and int((lengths == longest).sum()) >= _LIMIT_ROWS
    median = int(np.sort(lengths[is_prose])[count // 2])
    for example in examples:
        answer = example.answer
        if at_limit and len(answer) == longest:
            _doubt(log, example, f"answer seems cut off: exactly {longest} characters, as the longest others; kept")
        elif looks_cut_off(answer, must_end=ended >= _ENDED_SHARE and 2 * len(answer) >= median):
            _doubt(log, example, "answer seems cut off: it stops where the others end with a sign; kept")


def _doubt(log: FindingLog, example: Example, what: str) -> None:
    log.note_source(FindingKind.DOUBTFUL, what, example.source)
