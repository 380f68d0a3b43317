# SPDX-License-Identifier: Apache-2.0
"""Validation and test examples taken from the training file when none are given."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Final

from open_autoglm.data.cleaning import prompt_key
from open_autoglm.data.example import Example
from open_autoglm.task import TaskKind

HELD_OUT_SHARE: Final = 0.1
HELD_OUT_MOST: Final = 2000
_TEXT_RUN: Final = 16


def split_examples(
    examples: Sequence[Example], kind: TaskKind, *, valid: bool, test: bool, seed: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """Take a tenth of the examples, at most 2,000, for validation and as many for test; each only if asked for.

    Examples with the same input, passage or stretch of text stay together. Labels, or the sets of keys of JSON
    answers, keep their shares; a label that occurs once stays in train.
    Returns train, valid and test, each in file order; a pure function of the examples and the seed.
    """
    groups: dict[object, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(_group(example, index, len(examples), kind), []).append(index)
    members = list(groups.values())
    random.Random(f"split:{seed}").shuffle(members)
    strata: dict[str, list[list[int]]] = {}
    for group in members:
        strata.setdefault(_stratum(examples[group[0]], kind), []).append(group)
    alone = [group for name in sorted(strata) if len(strata[name]) == 1 for group in strata[name]]
    ordered = [group for name in sorted(strata) if len(strata[name]) > 1 for group in strata[name]]
    if kind is not TaskKind.CLASSIFICATION:
        ordered += alone
    if len(ordered) < len(examples) // 2:
        ordered = members
    size = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(examples))))
    chosen_valid = _every_nth(ordered, size, 0.75, set()) if valid else set[int]()
    chosen_test = _every_nth(ordered, size, 0.25, chosen_valid) if test else set[int]()
    held_out = chosen_valid | chosen_test
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return (
        train,
        [examples[index] for index in sorted(chosen_valid)],
        [examples[index] for index in sorted(chosen_test)],
    )


def _every_nth(groups: Sequence[list[int]], size: int, phase: float, taken: set[int]) -> set[int]:
    """Systematic sampling: groups at even distances along the strata, until they hold about `size` examples."""
    total = sum(map(len, groups))
    interval = total / size
    chosen: set[int] = set()
    place, mark = 0, phase * interval
    for group in groups:
        place += len(group)
        if place > mark and group[0] not in taken:
            chosen.update(group)
            mark += interval * len(group)
    return chosen


def _group(example: Example, index: int, count: int, kind: TaskKind) -> object:
    if kind is TaskKind.PLAIN_TEXT:
        return index // max(1, min(_TEXT_RUN, count // 40))
    if kind is TaskKind.QUESTION_ANSWERING:
        passage, separator, _ = example.input_text.rpartition("\n\n")
        if separator:
            return passage
    return prompt_key(example)


def _stratum(example: Example, kind: TaskKind) -> str:
    if kind is TaskKind.CLASSIFICATION:
        return example.answer.strip()
    if kind is TaskKind.EXTRACTION:
        return " ".join(sorted(_keys(json.loads(example.answer))))
    return ""


def _keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(_keys(inner) for inner in value.values()))
    if isinstance(value, list):
        return set[str]().union(*(_keys(inner) for inner in value))
    return set()
