# SPDX-License-Identifier: Apache-2.0
"""Exact duplicates, contradictions and leaks: found by the same input and answer, white space and NFC apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from open_autoglm.data.example import Example
from open_autoglm.data.findings import FindingKind, FindingLog


def text_key(text: str) -> str:
    """What makes two texts the same: NFC, and any run of white space is one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_key(example: Example) -> tuple[str, ...]:
    """What makes two inputs the same."""
    return tuple(f"{message.role}:{message.metadata}:{text_key(message.content)}" for message in example.prompt)


def example_key(example: Example) -> tuple[str, ...]:
    """What makes two examples the same: input and answer."""
    return (*prompt_key(example), example.messages[-1].metadata, text_key(example.answer))


def remove_duplicates(examples: Sequence[Example], log: FindingLog) -> list[Example]:
    """The first of each set of equal examples; the others are noted."""
    seen: set[tuple[str, ...]] = set()
    kept: list[Example] = []
    for example in examples:
        key = example_key(example)
        if key in seen:
            log.note_source(FindingKind.DUPLICATE, "same input and answer as an earlier row; removed", example.source)
        else:
            seen.add(key)
            kept.append(example)
    return kept


def note_duplicates(examples: Sequence[Example], log: FindingLog) -> None:
    """Note duplicates of a split that stays as given."""
    seen: set[tuple[str, ...]] = set()
    for example in examples:
        key = example_key(example)
        if key in seen:
            log.note_source(FindingKind.DUPLICATE, "same input and answer as an earlier row; kept", example.source)
        seen.add(key)


def note_contradictions(examples: Sequence[Example], log: FindingLog) -> None:
    """Note every example whose input has another answer elsewhere in the same split. Nothing is removed."""
    answers: dict[tuple[str, ...], set[str]] = {}
    keys = [prompt_key(example) for example in examples]
    for key, example in zip(keys, examples, strict=True):
        answers.setdefault(key, set()).add(text_key(example.answer))
    for key, example in zip(keys, examples, strict=True):
        if key and len(answers[key]) > 1:
            log.note_source(FindingKind.CONTRADICTION, "same input as another row, other answer; kept", example.source)


def remove_leaks(train: Sequence[Example], held_out: Sequence[Example], split: str, log: FindingLog) -> list[Example]:
    """The training examples that do not occur in `held_out`, so that the held-out split stays as given."""
    known = {example_key(example) for example in held_out}
    kept: list[Example] = []
    for example in train:
        if example_key(example) in known:
            log.note_source(FindingKind.LEAK, f"also in the {split} split; removed from train", example.source)
        else:
            kept.append(example)
    return kept
