# SPDX-License-Identifier: Apache-2.0
"""The data report: what was read, what it was taken for, what was changed, and how it was split."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from open_autoglm.data.answers import COPIED
from open_autoglm.data.example import Example
from open_autoglm.data.example_store import StoredExamples
from open_autoglm.data.findings import Finding, FindingKind
from open_autoglm.task import Task, TaskKind

REPORT_VERSION: Final = 1
_LANGUAGE_SAMPLE: Final = 200_000
_NO_LETTERS: Final = bytes(code for code in range(128) if not chr(code).isalpha())
_QUANTILES: Final = (("shortest", 0.0), ("median", 0.5), ("p95", 0.95), ("longest", 1.0))


@dataclass(frozen=True)
class FileReport:
    """One file.

    split: which it was given as. rows: lines, for plain text. columns: those used; ignored: those not.
    """

    path: str
    split: str
    format: str
    encoding: str
    rows: int
    columns: tuple[str, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """Everything there is to say about the data, JSON-ready.

    lengths: of inputs and answers, characters by quantile. findings: repairs, drops, duplicates, contradictions and
    leaks with their rows. output: the labels with their counts, or the fields of the answers. split_by: how valid and
    test were made.
    """

    files: tuple[FileReport, ...]
    task: str
    confidence: float
    reason: str
    runner_up: str | None
    language: str
    lengths: dict[str, dict[str, int]]
    split_sizes: dict[str, int]
    findings: tuple[Finding, ...]
    output: dict[str, Any]
    split_by: str = ""

    @property
    def rows_read(self) -> int:
        """Of all files."""
        return sum(file.rows for file in self.files)

    def of_kind(self, kind: FindingKind) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind is kind)

    def count(self, kind: FindingKind) -> int:
        """How many rows the findings of one kind concern."""
        return sum(finding.count for finding in self.of_kind(kind))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with totals per kind of finding; `from_dict` reads it back.

        version: raised when a key changes its meaning or goes; new keys may come without.
        """
        return {
            "version": REPORT_VERSION,
            **asdict(self),
            "rows_read": self.rows_read,
            "counts": {kind.value: self.count(kind) for kind in FindingKind},
            "files": [{**asdict(f), "columns": list(f.columns), "ignored": list(f.ignored)} for f in self.files],
            "findings": [finding.to_dict() for finding in self.findings],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataReport:
        """The inverse of `to_dict`."""
        if int(values.get("version", REPORT_VERSION)) > REPORT_VERSION:
            raise ValueError(f"a report of version {values['version']}, which is newer than this program")
        files = tuple(
            FileReport(**{**file, "columns": tuple(file["columns"]), "ignored": tuple(file["ignored"])})
            for file in values["files"]
        )
        names = ("task", "confidence", "reason", "runner_up", "language", "lengths", "split_sizes", "output")
        findings = tuple(Finding.from_dict(finding) for finding in values["findings"])
        split_by = str(values.get("split_by", ""))
        return cls(files=files, findings=findings, split_by=split_by, **{name: values[name] for name in names})


def name_language(texts: Iterable[str]) -> str:
    """`zh`, `en` or `other`, by the letters: a third of Chinese characters, or nine tenths of ASCII."""
    ascii_letters = chinese = japanese_korean = letters = 0
    seen = 0
    for text in texts:
        seen += len(text)
        if text.isascii():
            count = len(text.encode().translate(None, _NO_LETTERS))
            letters += count
            ascii_letters += count
            continue
        for character in text:
            if not character.isalpha():
                continue
            letters += 1
            if character.isascii():
                ascii_letters += 1
            elif unicodedata.name(character, "").startswith("CJK"):
                chinese += 1
            elif unicodedata.name(character, "").startswith(("HIRAGANA", "KATAKANA", "HANGUL")):
                japanese_korean += 1
        if seen > _LANGUAGE_SAMPLE:
            break
    if not letters:
        return "other"
    if japanese_korean * 10 > letters:
        return "other"
    if chinese * 3 > letters:
        return "zh"
    return "en" if ascii_letters * 10 >= 9 * letters else "other"


def measure_lengths(examples: Sequence[Example]) -> dict[str, dict[str, int]]:
    """Characters of inputs and answers: shortest, median, 95% and longest."""
    measured: dict[str, dict[str, int]] = {}
    stored = StoredExamples.of(examples)
    for name, lengths in (("input", np.sort(stored.input_lengths)), ("answer", np.sort(stored.answer_lengths))):
        last = len(lengths) - 1
        measured[name] = {label: int(lengths[round(share * last)]) for label, share in _QUANTILES} if last >= 0 else {}
    return measured


def summarise_output(task: Task, train: Sequence[Example]) -> dict[str, Any]:
    """The labels with their counts, the tools with how often they are called, or a line for each field of the answers.

    tools: how many all rows have in common.
    """
    if task.kind is TaskKind.CLASSIFICATION:
        counts = Counter(example.answer for example in train)
        return {"labels": len(task.labels), "counts": {label: counts[label] for label in task.labels}}
    if task.kind is TaskKind.TOOL_CALLS:
        calls = Counter(call.name for example in train for message in example.messages for call in message.tool_calls)
        return {"tools": len(task.tools), "calls": dict(calls.most_common())}
    if task.answer_schema is not None:
        return {"fields": describe_fields(task.answer_schema)}
    return {}


def describe_fields(schema: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Each field of a JSON schema in a few words, by its path: `slots.artist` -> `words of the input, optional`."""
    described: dict[str, str] = {}
    for part in schema.get("anyOf", (schema,)):
        for name, inner in part.get("properties", {}).items():
            place = f"{path}.{name}" if path else name
            need = "" if name in part.get("required", ()) else ", optional"
            described[place] = _describe(inner) + need
            described.update(describe_fields(inner, place))
        if isinstance(part.get("items"), dict):
            described.update(describe_fields(part["items"], f"{path}[]"))
    return described


def _describe(schema: Mapping[str, Any]) -> str:
    words = []
    for part in schema.get("anyOf", (schema,)):
        if part.get(COPIED):
            words.append("words of the input")
        elif "enum" in part:
            words.append(f"one of {len(part['enum'])} values")
        elif part.get("type") == "array":
            words.append(f"list of {_describe(part['items'])}" if isinstance(part.get("items"), dict) else "empty list")
        else:
            words.append(str(part.get("type", "anything")))
    return " or ".join(words)
