# SPDX-License-Identifier: Apache-2.0
"""How the rows of a file are laid out: which shape they have, and which columns hold what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from open_autoglm.data.column_names import (
    ANSWER_NAMES,
    CONTEXT_NAMES,
    DOCUMENT_NAMES,
    LABEL_NAMES,
    LATE_RESPONSE_NAMES,
    PAIRED_NAMES,
    QUERY_NAMES,
    QUESTION_NAMES,
    RESPONSE_NAMES,
    SUMMARY_NAMES,
    TEXT_NAMES,
)
from open_autoglm.data.columns import ColumnProfile, check_columns, find_named, profile_column
from open_autoglm.data.conversations import dialogue_column
from open_autoglm.data.readers import FileRows
from open_autoglm.errors import DataError

_PROFILED: Final = 2000


class Shape(StrEnum):
    """How the rows of a file are laid out."""

    PLAIN_TEXT = "plain_text"
    DIALOGUE = "dialogue"
    PASSAGE = "passage"
    ALPACA = "alpaca"
    PAIR = "pair"
    LABELLED = "labelled"


@dataclass(frozen=True)
class Layout:
    """Which columns of a file hold what.

    input_column, output_column: for people; None for texts without columns. extra: role -> column, of shapes that
    need more than two. by: how it was found.
    """

    shape: Shape
    input_column: str | None = None
    output_column: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    by: str = "names"

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        named = [self.input_column, self.output_column, *self.extra.values()]
        return tuple(dict.fromkeys(name for name in named if name is not None))


def find_layout(file: FileRows, chosen: Mapping[str, str] | None = None, known: Layout | None = None) -> Layout:
    """How a file is to be read.

    chosen: the user's `input` and `output` columns. known: the layout of the training file; kept if this file has
    its columns.
    Raises ConfigurationError for a chosen column that is not there, DataError when no text pair can be found.
    """
    if chosen:
        return _chosen_layout(file, chosen)
    if not file.columns:
        return Layout(Shape.PLAIN_TEXT, by="the format")
    if known is not None and known.columns and set(known.columns) - set(known.extra.values()) <= set(file.columns):
        return known
    dialogues = (dialogue_column(row.values) for row in file.rows if isinstance(row.values, dict))
    if column := next(filter(None, dialogues), None):
        return Layout(Shape.DIALOGUE, column, column, by="structure")
    return _named_layout(file) or _layout_by_content(file)


def _chosen_layout(file: FileRows, chosen: Mapping[str, str]) -> Layout:
    source, target = check_columns(chosen, file.columns, str(file.path))
    if source is not None and target is not None:
        return Layout(Shape.PAIR, source, target, by="--columns")
    if source is None:
        return Layout(Shape.PLAIN_TEXT, None, target, by="--columns")
    rest = tuple(column for column in file.columns if column != source)
    target = find_named((*RESPONSE_NAMES, *LABEL_NAMES, *SUMMARY_NAMES, *LATE_RESPONSE_NAMES), rest)
    if target is None and len(rest) == 1:
        target = rest[0]
    if target is None:
        raise DataError(
            f"{file.path}: which column is the answer? Add output=NAME to --columns; the others are: {', '.join(rest)}"
        )
    return Layout(Shape.PAIR, source, target, by="--columns and names")


def _named_layout(file: FileRows) -> Layout | None:
    columns = file.columns
    context, question = find_named(CONTEXT_NAMES, columns), find_named(QUESTION_NAMES, columns)
    answer = find_named(ANSWER_NAMES, columns)
    if context and question and answer and len({context, question, answer}) == 3:
        return Layout(Shape.PASSAGE, question, answer, {"context": context})
    response = find_named(RESPONSE_NAMES, columns)
    instruction = find_named(("instruction", "指令"), columns)
    if instruction and response:
        found = {
            "input": find_named(("input", "输入"), columns),
            "system": find_named(("system", "系统"), columns),
            "history": find_named(("history", "历史"), columns),
        }
        extra = {role: column for role, column in found.items() if column not in (None, response)}
        return Layout(Shape.ALPACA, instruction, response, {k: v for k, v in extra.items() if v is not None})
    query, document, summary = (find_named(names, columns) for names in (QUERY_NAMES, DOCUMENT_NAMES, SUMMARY_NAMES))
    if query and response and query != response:
        return Layout(Shape.PAIR, query, response)
    label = find_named(LABEL_NAMES, columns)
    for one, other in PAIRED_NAMES:
        first, second = find_named((one,), columns), find_named((other,), columns)
        if label and first and second:
            return Layout(Shape.LABELLED, first, label, {"second": second})
    text = find_named((*TEXT_NAMES, *QUERY_NAMES), columns)
    if label and text and label != text and _profile(file, label).distinct_count > 0:
        return Layout(Shape.LABELLED, text, label)
    if document and summary:
        return Layout(Shape.PAIR, document, summary)
    if document and response and document != response:
        return Layout(Shape.PAIR, document, response)
    late = find_named(LATE_RESPONSE_NAMES, columns)
    if query and late and query != late:
        return Layout(Shape.PAIR, query, late)
    return None


def _layout_by_content(file: FileRows) -> Layout:
    """Two columns that can only be a text and its answer, whatever they are called; or one column of texts."""
    profiles = [profile for profile in (_profile(file, column) for column in file.columns) if profile.filled > 0]
    texts = [profile for profile in profiles if profile.is_text]
    labels = [profile for profile in profiles if profile.is_label and not profile.is_text]
    objects = [profile for profile in profiles if profile.is_json]
    if len(texts) == 1 and len(objects) == 1 and not labels:
        return Layout(Shape.PAIR, texts[0].name, objects[0].name, by="content")
    if len(texts) == 1 and len(labels) == 1:
        return Layout(Shape.LABELLED, texts[0].name, labels[0].name, by="content")
    named = find_named(TEXT_NAMES, [profile.name for profile in profiles])
    if not labels and not objects and (len(texts) == 1 or (named is not None and len(profiles) == 1)):
        return Layout(Shape.PLAIN_TEXT, None, texts[0].name if texts else named, by="content")
    columns = ", ".join(file.columns)
    if len(texts) > 1:
        raise DataError(
            f"{file.path}: several columns hold texts ({', '.join(profile.name for profile in texts)}) and no name "
            f"says which is the answer; choose with --columns input=NAME output=NAME (columns: {columns})"
        )
    raise DataError(
        f"{file.path}: no column pair of a text and its answer was found, this looks like a table of features; tabular "
        f"tasks are not supported yet. If two columns are a text and its answer, name them with --columns input=NAME "
        f"output=NAME (columns: {columns})"
    )


def _profile(file: FileRows, column: str) -> ColumnProfile:
    values = [row.values.get(column) for row in file.rows[:_PROFILED] if isinstance(row.values, dict)]
    return profile_column(column, values)
