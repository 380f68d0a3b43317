# SPDX-License-Identifier: Apache-2.0
"""Answers in the one form in which they are trained on, compared and hashed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from open_autoglm.data.example import Example
from open_autoglm.data.example_store import StoredExamples, pairs_of
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.data.json_text import load_json
from open_autoglm.errors import DataError
from open_autoglm.task import Task, TaskKind

FREE_ORDER: Final = "x-free-order"
COPIED: Final = "x-copied"
COPIED_IN_ORDER: Final = "x-copied-in-order"
_BAD_SHARE: Final = 0.01
_MAX_DEPTH: Final = 32
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": ")).encode


def dump_answer(value: Any) -> str:
    """JSON as answers are written: one line, a space after commas and colons, no escapes for non-ASCII letters."""
    return _encode(value)


def parse_answer(text: str) -> Any:
    """A JSON object or array. Raises ValueError for anything else, and for nesting deeper than 32."""
    try:
        value = load_json(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict | list):
        raise ValueError("neither an object nor an array")
    # So many brackets are needed at least, which is counted faster than the depth.
    if text.count("{") + text.count("[") > _MAX_DEPTH and _depth(value) > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    return value


def canonical_answer(text: str, schema: dict[str, Any] | None) -> str:
    """The one serialisation of a JSON answer.

    Keys of an object come in the order of the schema's properties, unless it is marked `x-free-order`: then, and
    for keys that the schema does not know, in the order given.
    Raises ValueError when `text` is not a JSON object or array.
    """
    return dump_answer(order_keys(parse_answer(text), schema))


def order_keys(value: Any, schema: dict[str, Any] | None) -> Any:
    """A JSON value with its keys in the order of the schema."""
    if isinstance(value, dict):
        node = _branch(schema, "object")
        properties = node.get("properties", {})
        names: Iterable[str] = value
        if len(value) > 1 and not node.get(FREE_ORDER):
            # The keys that the schema knows as it has them, then the others.
            names = [name for name in properties if name in value]
            if len(names) < len(value):
                names += [name for name in value if name not in properties]
        return {
            name: order_keys(inner, properties.get(name)) if isinstance(inner := value[name], dict | list) else inner
            for name in names
        }
    if isinstance(value, list):
        items = _branch(schema, "array").get("items")
        return [order_keys(item, items) for item in value]
    return value


def canonical_text(answer: str, task: Task) -> str:
    """An answer in canonical form. Raises ValueError when an extraction's answer is not JSON."""
    if task.kind is TaskKind.EXTRACTION:
        return canonical_answer(answer, task.answer_schema)
    return answer.strip() if task.kind in (TaskKind.CLASSIFICATION, TaskKind.TABULAR) else answer


def canonical_example(example: Example, task: Task) -> Example:
    """The example with its answer in canonical form. Raises ValueError when an extraction's answer is not JSON."""
    answer = canonical_text(example.answer, task)
    if answer == example.answer:
        return example
    return replace(example, messages=(*example.prompt, replace(example.messages[-1], content=answer)))


def canonical_examples(examples: StoredExamples, task: Task) -> StoredExamples:
    """The examples with their answers in canonical form. Raises ValueError as `canonical_example`."""
    if task.kind not in (TaskKind.EXTRACTION, TaskKind.CLASSIFICATION, TaskKind.TABULAR):
        return examples
    return examples.mapped_answers(partial(canonical_text, task=task))


def drop_unusable(examples: Sequence[Example], kind: TaskKind, log: FindingLog) -> StoredExamples:
    """Without the rows whose answer is not JSON although the task is extraction; each is noted.

    Raises DataError, naming the first such row, when they are more than 1%.
    """
    examples = StoredExamples.of(examples)
    if kind is not TaskKind.EXTRACTION:
        return examples
    stays = np.ones(len(examples), dtype=np.bool_)
    first = ""
    for place, (_, answer) in enumerate(pairs_of(examples)):
        try:
            parse_answer(answer)
        except ValueError as error:
            first = first or str(error)
            stays[place] = False
    faults = examples.take(~stays)
    if len(faults) > _BAD_SHARE * len(examples):
        raise DataError(
            f"{faults[0].source}: the answer is not a JSON object or array ({first}), and so are {len(faults) - 1} "
            f"more of {len(examples)}; repair them, or give another --task"
        )
    for example in faults:
        log.note_source(FindingKind.DROP, "answer is not JSON", example.source)
    return examples.take(stays)


def _branch(schema: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    """The part of a schema that is about values of this type."""
    if not schema:
        return {}
    if schema.get("type") == kind and "anyOf" not in schema:
        return schema
    return next((part for part in schema.get("anyOf", (schema,)) if part.get("type") == kind), {})


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
