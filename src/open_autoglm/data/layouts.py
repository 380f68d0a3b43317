# SPDX-License-Identifier: Apache-2.0
"""How the rows of a file are laid out: which shape they have, and which columns hold what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from open_autoglm.data.choices import Choices, find_choices
from open_autoglm.data.column_names import (
    ANSWER_NAMES,
    CHOSEN_NAMES,
    CONTEXT_NAMES,
    DOCUMENT_NAMES,
    HISTORY_NAMES,
    LABEL_NAMES,
    LATE_RESPONSE_NAMES,
    MEDIA_NAMES,
    PAIRED_NAMES,
    QUERY_NAMES,
    QUESTION_NAMES,
    REJECTED_NAMES,
    RESPONSE_NAMES,
    SUMMARY_NAMES,
    SYSTEM_NAMES,
    TAG_NAMES,
    TEXT_NAMES,
    VERDICT_WORDS,
)
from open_autoglm.data.columns import check_columns, find_named, profile_column, value_text
from open_autoglm.data.rows import FileRows
from open_autoglm.data.sampled_table import number_to_estimate
from open_autoglm.data.tagged_tokens import refuse_tagged_tokens
from open_autoglm.data.transcripts import is_open, transcript_columns
from open_autoglm.data.turns import dialogue_columns
from open_autoglm.errors import DataError

_PROFILED: Final = 2000
_TABLE_COLUMNS: Final = 4


class Shape(StrEnum):
    """How the rows of a file are laid out."""

    PLAIN_TEXT = "plain_text"
    DIALOGUE = "dialogue"
    PASSAGE = "passage"
    ALPACA = "alpaca"
    PAIR = "pair"
    LABELLED = "labelled"
    TABLE = "table"
    CHOICE = "choice"
    FIELDS = "fields"


@dataclass(frozen=True)
class Layout:
    """Which columns of a file hold what.

    input_column, output_column: for people; None for texts without columns. extra: role -> column, of shapes that
    need more than two (context, input, second, system, history, rejected, winner, tag, image, video, audio). features:
    the columns of a table from which the output column is to be told, or those that are read out of a text. choices:
    where the options of a question stand. lists: a list is an answer, and does not hold several to choose from. by: how
    it was found.
    """

    shape: Shape
    input_column: str | None = None
    output_column: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    by: str = "names"
    features: tuple[str, ...] = ()
    choices: Choices | None = None
    lists: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        options = self.choices.options if self.choices is not None else ()
        named = [self.input_column, self.output_column, *self.extra.values(), *self.features, *options]
        return tuple(dict.fromkeys(name for name in named if name is not None))


def find_layout(file: FileRows, chosen: Mapping[str, str] | None = None, known: Layout | None = None) -> Layout:
    """How a file is to be read.

    chosen: the user's columns by role. known: the layout of the training file; kept if this file has its columns.
    Raises ConfigurationError for a chosen column that is not there, AmbiguousDataError when the rows can be read in
    several ways, DataError when in none.
    """
    if chosen:
        return _with_extras(file, _chosen_layout(file, chosen))
    if not file.columns:
        return Layout(Shape.PLAIN_TEXT, by="the format")
    if known is not None and known.columns and set(known.columns) - set(known.extra.values()) <= set(file.columns):
        return known
    for row in file.rows:
        if isinstance(row.values, dict) and (found := dialogue_columns(row.values)):
            return _with_extras(file, _dialogue_layout(file.columns, found))
    rows = _profiled(file)
    if found := transcript_columns(rows):
        return _with_extras(file, _transcript_layout(file.columns, found, rows))
    refuse_tagged_tokens(file.path, rows, file.columns)
    if (choices := find_choices(rows, file.columns)) is not None:
        context = find_named(CONTEXT_NAMES, [name for name in file.columns if name != choices.question])
        extra = {"context": context} if context is not None and context not in choices.options else {}
        return Layout(Shape.CHOICE, choices.question, choices.answer, extra, by="structure", choices=choices)
    if (named := _named_layout(file)) is not None:
        if named.shape is Shape.LABELLED and _is_estimate(rows, named.output_column or ""):
            raise number_to_estimate(file.path, named.input_column or "", named.output_column or "")
        return _with_extras(file, named)
    from open_autoglm.data.content_layouts import layout_by_content  # it needs the types of this file

    return _with_extras(file, layout_by_content(file.path, rows, file.columns))


def _dialogue_layout(columns: Sequence[str], found: Sequence[str]) -> Layout:
    """A dialogue, or two of which one is better."""
    rejected, chosen = find_named(REJECTED_NAMES, columns), find_named(CHOSEN_NAMES, columns)
    others = [column for column in found if column not in (rejected, chosen)]
    if not others:
        column = chosen or found[0]
        return Layout(Shape.DIALOGUE, column, column, by="structure")
    extra = {"chosen": chosen} if chosen and chosen != others[0] else {}
    return Layout(Shape.DIALOGUE, others[0], others[0], extra, by="structure")


def _transcript_layout(columns: Sequence[str], found: Sequence[str], rows: Sequence[dict[str, Any]]) -> Layout:
    """Dialogues in one text; where that ends before the answer, it stands in a column of its own."""
    layout = _dialogue_layout(columns, found)
    if layout.extra.get("chosen") is None and all(
        is_open(str(row.get(layout.input_column or "") or "")) for row in rows[:50]
    ):
        answer = find_named((*CHOSEN_NAMES, *RESPONSE_NAMES), [name for name in columns if name not in layout.columns])
        if answer is not None:
            return replace(layout, extra={**layout.extra, "chosen": answer})
    return layout


def _is_estimate(rows: Sequence[dict[str, Any]], column: str) -> bool:
    """Whether a label is a number of many values, fractions among them."""
    profile = profile_column(column, [row.get(column) for row in rows])
    cells = [value_text(row.get(column)) for row in rows]
    return profile.is_numeric and not profile.is_label and any("." in cell for cell in cells) and len(cells) >= 20


def _with_extras(file: FileRows, layout: Layout) -> Layout:
    """The layout with the columns that any shape may have beside it."""
    if layout.shape in (Shape.PLAIN_TEXT, Shape.TABLE, Shape.CHOICE, Shape.FIELDS):
        return layout
    wanted = {"system": SYSTEM_NAMES, "history": HISTORY_NAMES, "rejected": REJECTED_NAMES, "tag": TAG_NAMES}
    found = {role: find_named(names, file.columns) for role, names in {**wanted, **MEDIA_NAMES}.items()}
    if found["tag"] is None and layout.shape is not Shape.LABELLED:
        label = find_named(LABEL_NAMES, file.columns)
        if label is None or label == layout.output_column or not _is_truth(file, label):
            label = next((c for c in file.columns if c not in layout.columns and _says_liked(file, c)), None)
        found["tag"] = label
    taken = set(layout.columns)
    extra = {role: column for role, column in found.items() if column is not None and column not in taken}
    if layout.shape is Shape.DIALOGUE:
        # Its reader looks for these two by itself.
        extra.pop("system", None)
        extra.pop("history", None)
    for kind in MEDIA_NAMES:
        if kind in extra and not _has_references(file, extra[kind]):
            del extra[kind]
    return replace(layout, extra={**extra, **layout.extra}) if extra else layout


def _profiled(file: FileRows) -> list[dict[str, Any]]:
    """Rows from all over the file: it may be sorted by its labels."""
    step = -(-len(file.rows) // _PROFILED) or 1
    return [row.values for row in file.rows[::step] if isinstance(row.values, dict)]


def _is_truth(file: FileRows, column: str) -> bool:
    values = {str(row.get(column)).casefold() for row in _profiled(file)}
    return values <= {"true", "false"}


def _says_liked(file: FileRows, column: str) -> bool:
    """Whether a column of true and false is called by what people say of answers that they like."""
    words = re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", column.strip())
    return any(word.casefold() in VERDICT_WORDS for word in words) and _is_truth(file, column)


def _has_references(file: FileRows, column: str) -> bool:
    """Whether the cells are lists, or look like paths or addresses."""
    for row in _profiled(file):
        value = row.get(column)
        if isinstance(value, str) and value:
            return "/" in value or "." in value
        if value:
            return isinstance(value, list | dict)
    return False


def _chosen_layout(file: FileRows, chosen: Mapping[str, str]) -> Layout:
    found = check_columns(chosen, file.columns, str(file.path))
    several = found.get("output", "")
    if "," in several and several not in file.columns:
        if "input" not in found:
            raise DataError(f"{file.path}: several output columns need input=NAME, the text that they are read out of")
        return Layout(Shape.FIELDS, found["input"], features=tuple(several.split(",")), by="--columns")
    if messages := found.get("messages"):
        return Layout(Shape.DIALOGUE, messages, messages, by="--columns")
    source, target = found.pop("input", None), found.pop("output", None)
    if source is not None and target is not None:
        shape = Shape.PASSAGE if "context" in found else Shape.PAIR
        return Layout(shape, source, target, found, by="--columns")
    if source is None:
        if target is not None and (table := _table_with(file, target)) is not None:
            return table
        return Layout(Shape.PLAIN_TEXT, None, target, by="--columns")
    rest = tuple(column for column in file.columns if column not in (source, *found.values()))
    target = find_named((*RESPONSE_NAMES, *LABEL_NAMES, *SUMMARY_NAMES, *LATE_RESPONSE_NAMES), rest)
    if target is None and len(rest) == 1:
        target = rest[0]
    if target is None:
        raise DataError(
            f"{file.path}: which column is the answer? Add output=NAME to --columns; the others are: {', '.join(rest)}"
        )
    return Layout(Shape.PASSAGE if "context" in found else Shape.PAIR, source, target, found, by="--columns and names")


def _table_with(file: FileRows, target: str) -> Layout | None:
    """A table with this target, if the target is not a text by itself."""
    from open_autoglm.data.content_layouts import table_layout  # it needs the types of this file

    rows = _profiled(file)
    profiles = [profile_column(column, [row.get(column) for row in rows]) for column in file.columns]
    aim = next(profile for profile in profiles if profile.name == target)
    if aim.is_text or aim.is_json or len(profiles) < 2 or not (aim.is_label or aim.is_numeric):
        return None
    return table_layout([profile for profile in profiles if profile.filled > 0], target, "--columns")


def _named_layout(file: FileRows) -> Layout | None:
    columns = file.columns
    context, question = find_named(CONTEXT_NAMES, columns), find_named(QUESTION_NAMES, columns)
    answer = find_named(ANSWER_NAMES, columns)
    if context and question and answer and len({context, question, answer}) == 3:
        return Layout(Shape.PASSAGE, question, answer, {"context": context})
    response = find_named(RESPONSE_NAMES, columns)
    instruction = find_named(("instruction", "指令"), columns)
    if instruction and response:
        more = find_named(("input", "输入"), columns)
        extra = {"input": more} if more is not None and more != response else {}
        return Layout(Shape.ALPACA, instruction, response, extra)
    query, document, summary = (find_named(names, columns) for names in (QUERY_NAMES, DOCUMENT_NAMES, SUMMARY_NAMES))
    if query and response and query != response:
        return Layout(Shape.PAIR, query, response)
    label = find_named(LABEL_NAMES, columns)
    for one, other in PAIRED_NAMES:
        first, second = find_named((one,), columns), find_named((other,), columns)
        if label and first and second:
            return Layout(Shape.LABELLED, first, label, {"second": second})
    text = find_named((*TEXT_NAMES, *QUERY_NAMES), columns)
    if label and text and label != text and _is_filled(file, label) and not _is_table(file, label):
        return Layout(Shape.LABELLED, text, label)
    if document and summary:
        return Layout(Shape.PAIR, document, summary)
    if document and response and document != response:
        return Layout(Shape.PAIR, document, response)
    late = find_named(LATE_RESPONSE_NAMES, columns)
    if query and late and query != late:
        return Layout(Shape.PAIR, query, late)
    return None


def _is_filled(file: FileRows, column: str) -> bool:
    return any(value_text(row.get(column)).strip() for row in _profiled(file))


def _is_table(file: FileRows, label: str) -> bool:
    """Whether most columns beside a label are numbers, so that a name such as `title` among them is a feature too."""
    others = [column for column in file.columns if column != label]
    if len(others) < _TABLE_COLUMNS:
        return False
    rows = _profiled(file)
    profiles = [profile_column(column, [row.get(column) for row in rows]) for column in others]
    return sum(profile.is_numeric and not profile.is_id for profile in profiles) * 2 > len(others)
