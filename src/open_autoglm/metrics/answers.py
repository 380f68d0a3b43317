# SPDX-License-Identifier: Apache-2.0
"""Scores of answers against references, by the kind of task: plain functions of strings, without any model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from open_autoglm.metrics.samples import Samples, mean, overlap, ratio
from open_autoglm.metrics.texts import is_same_answer, rouge_l, rouge_n, token_f1
from open_autoglm.task import Task, TaskKind

_MOST_CLOSED_FIELDS: Final = 8


def score_answers(task: Task, answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The values of `answer_samples`. Raises ValueError when the counts differ or are zero."""
    return {name: samples.value for name, samples in answer_samples(task, answers, references).items()}


def answer_samples(task: Task, answers: Sequence[str], references: Sequence[str]) -> dict[str, Samples]:
    """All metrics of the task's kind that need no probabilities; the deciding one is among them.

    extraction: exact_match of the whole JSON value, field_f1 over all of its leaves, valid_json; and where the answer
    schema has fields at the top whose values are a closed set, such as an intent, the accuracy of each and slot_f1
    over the leaves of all others. classification, tabular: accuracy, macro_f1. question answering: f1, exact_match.
    summarisation: rouge_l, rouge_1, rouge_2. Others: exact_match. Every value is between 0 and 1.
    Raises ValueError when the counts differ or are zero.
    """
    if len(answers) != len(references) or not references:
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    pairs = list(zip(answers, references, strict=True))
    match task.kind:
        case TaskKind.EXTRACTION:
            return _extraction(pairs, closed_fields(task))
        case TaskKind.CLASSIFICATION | TaskKind.TABULAR:
            stripped = [answer.strip() for answer in answers]
            wanted = [reference.strip() for reference in references]
            right = [answer == reference for answer, reference in zip(stripped, wanted, strict=True)]
            return {"accuracy": mean(right), "macro_f1": _macro_f1(stripped, wanted)}
        case TaskKind.QUESTION_ANSWERING:
            return {
                "f1": mean([token_f1(answer, reference) for answer, reference in pairs]),
                "exact_match": mean([is_same_answer(answer, reference) for answer, reference in pairs]),
            }
        case TaskKind.SUMMARISATION:
            return {
                "rouge_l": mean([rouge_l(answer, reference) for answer, reference in pairs]),
                "rouge_1": mean([rouge_n(answer, reference, 1) for answer, reference in pairs]),
                "rouge_2": mean([rouge_n(answer, reference, 2) for answer, reference in pairs]),
            }
        case _:
            return {"exact_match": mean([answer.strip() == reference.strip() for answer, reference in pairs])}


def perplexity(nats: float, tokens: int) -> float:
    """exp(nats / tokens), the geometric mean of how many tokens the model hesitates between."""
    return math.exp(min(nats / max(1, tokens), 700.0))


def perplexity_samples(nats: np.ndarray, tokens: np.ndarray, sizes: np.ndarray) -> dict[str, Samples]:
    """perplexity per token, and bits_per_byte, which compares across tokenizers.

    nats, tokens, sizes: [n], of each example's answer: its loss, its tokens and its bytes.
    """
    by_token, by_byte = (
        np.stack([np.asarray(nats, dtype=np.float64), np.maximum(counts, 0).astype(np.float64)], axis=1)
        for counts in (tokens, sizes)
    )
    return {
        "perplexity": Samples(by_token, lambda sums: np.exp(np.minimum(ratio(sums), 700.0))),
        "bits_per_byte": Samples(by_byte, lambda sums: ratio(sums) / math.log(2)),
    }


def macro_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    """The mean over the references' labels of each label's F1."""
    return _macro_f1(answers, references).value


def closed_fields(task: Task) -> list[str]:
    """The fields at the top of an extraction's answers that are one of a closed set of words, such as an intent."""
    properties = (task.answer_schema or {}).get("properties")
    if not isinstance(properties, dict):
        return []
    closed = [name for name, schema in properties.items() if isinstance(schema, dict) and "enum" in schema]
    return closed[:_MOST_CLOSED_FIELDS] if len(closed) < len(properties) else []


def parse_json(text: str) -> Any:
    """The JSON value of an answer, or None for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _macro_f1(answers: Sequence[str], references: Sequence[str]) -> Samples:
    """Labels without a reference in a resample are no part of its mean."""
    places = {label: place for place, label in enumerate(sorted(set(references)))}
    count = len(places)
    sums = np.zeros((len(references), 3 * count))
    for row, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        wanted, found = places[reference], places.get(answer)
        sums[row, 2 * count + wanted] = 1
        if found is not None:
            sums[row, count + found] = 1
            sums[row, wanted] = found == wanted

    def combine(totals: np.ndarray) -> np.ndarray:
        hits, found, wanted = (totals[..., part * count : (part + 1) * count] for part in range(3))
        scores = ratio(np.stack([2 * hits, found + wanted], axis=-1))
        return (scores * (wanted > 0)).sum(axis=-1) / np.maximum(1, (wanted > 0).sum(axis=-1))

    return Samples(sums, combine)


def _extraction(pairs: Sequence[tuple[str, str]], closed: Sequence[str]) -> dict[str, Samples]:
    exact: list[bool] = []
    valid: list[bool] = []
    fields: list[tuple[int, int, int]] = []
    slots: list[tuple[int, int, int]] = []
    known: dict[str, list[bool]] = {name: [] for name in closed}
    for answer, reference in pairs:
        ours, theirs = parse_json(answer), json.loads(reference)
        valid.append(ours is not None)
        exact.append(ours == theirs and ours is not None)
        fields.append(_common(_leaves(ours), _leaves(theirs)))
        for name, right in known.items():
            right.append(_member(ours, name) == _member(theirs, name))
        slots.append(_common(_leaves(_without(ours, closed)), _leaves(_without(theirs, closed))))
    found = {"exact_match": mean(exact), "field_f1": overlap(fields), "valid_json": mean(valid)}
    if closed:
        found |= {f"{name}_accuracy": mean(right) for name, right in known.items() if f"{name}_accuracy" not in found}
        found["slot_f1"] = overlap(slots)
    return found


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _without(value: Any, names: Sequence[str]) -> Any:
    return {key: inner for key, inner in value.items() if key not in names} if isinstance(value, dict) else value


def _common(ours: list[Any], theirs: list[Any]) -> tuple[int, int, int]:
    our_leaves, their_leaves = Counter(ours), Counter(theirs)
    return sum((our_leaves & their_leaves).values()), len(ours), len(theirs)


def _leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """Every leaf with the keys that lead to it; places in a list do not count."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in _leaves(inner, path)]
    return [] if value is None and not path else [(path, json.dumps(value, ensure_ascii=False))]
