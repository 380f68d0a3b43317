# SPDX-License-Identifier: Apache-2.0
"""Rows of any shape that users bring -> Examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data.column_names import REFERENCE_NAMES
from open_autoglm.data.columns import find_named, value_text
from open_autoglm.data.conversations import read_dialogue
from open_autoglm.data.example import Example
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.data.layouts import Layout, Shape
from open_autoglm.data.plain_text import CHUNK_CHARACTERS, chunk_text
from open_autoglm.data.readers import FileRows
from open_autoglm.errors import DataError

_INPUT_LIST_JOINT: Final = " "


def read_examples(file: FileRows, layout: Layout, log: FindingLog) -> list[Example]:
    """Rows -> Examples, in order; what cannot be used is noted in `log`.

    Raises DataError, with file, row and column, for a text that is not Unicode or holds a NUL.
    """
    if layout.shape is Shape.PLAIN_TEXT:
        return _read_plain_text(file, layout, log)
    readers: dict[Shape, Callable[[dict[str, Any], Layout, _Place], list[Message] | None]] = {
        Shape.DIALOGUE: _read_dialogue,
        Shape.PASSAGE: _read_passage,
        Shape.ALPACA: _read_alpaca,
        Shape.PAIR: _read_pair,
        Shape.LABELLED: _read_pair,
    }
    examples: list[Example] = []
    for row in file.rows:
        if not isinstance(row.values, dict):
            raise DataError(
                f"{file.path}, row {row.number}: a text, where columns {', '.join(layout.columns)} are read"
            )
        place = _Place(file, row.number, log)
        messages = readers[layout.shape](row.values, layout, place)
        if messages:
            examples.append(Example(tuple(messages), place.source))
    return examples


@dataclass(frozen=True)
class _Place:
    """A row, while it is read."""

    file: FileRows
    row: int
    log: FindingLog

    @property
    def source(self) -> str:
        return f"{self.file.name}:{self.row}"

    def note(self, kind: FindingKind, what: str) -> None:
        self.log.note(kind, what, self.file.name, self.row)

    def clean(self, text: str, column: str) -> str:
        """A text without outer white space. Raises DataError for what no tokenizer can read."""
        if "\0" in text:
            raise DataError(f"{self.file.path}, row {self.row}, '{column}': holds a NUL character; remove it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.file.path}, row {self.row}, '{column}': character {error.start + 1} is half a surrogate pair "
                f"(\\u{ord(text[error.start]):04x}), which is not Unicode text; repair or remove the row"
            ) from None
        stripped = text.strip()
        if stripped != text and stripped:
            self.note(FindingKind.REPAIR, "white space around a text removed")
        return stripped


def _read_plain_text(file: FileRows, layout: Layout, log: FindingLog) -> list[Example]:
    examples: list[Example] = []
    for row in file.rows:
        place = _Place(file, row.number, log)
        column = layout.output_column or "text"
        text = row.values if isinstance(row.values, str) else value_text(row.values.get(column))
        text = place.clean(text.replace("\r\n", "\n"), column) if file.format != "text" else text.replace("\r\n", "\n")
        if not text:
            place.note(FindingKind.DROP, f"nothing in '{column}'")
            continue
        pieces = chunk_text(text, CHUNK_CHARACTERS)
        for line, piece in pieces:
            number = row.number + line - 1 if file.format == "text" else row.number
            piece_place = _Place(file, number, log)
            message = Message(Role.ASSISTANT, piece_place.clean(piece, column))
            examples.append(Example((message,), piece_place.source))
    return examples


def _read_dialogue(values: dict[str, Any], layout: Layout, place: _Place) -> list[Message] | None:
    column = layout.input_column or "messages"
    if not values.get(column):
        place.note(FindingKind.DROP, f"nothing in '{column}'")
        return None
    messages, cut = read_dialogue(values, column, f"{place.file.path}, row {place.row}")
    if cut:
        place.note(FindingKind.REPAIR, "turns after the assistant's last one left off")
    cleaned = [Message(m.role, place.clean(m.content, column), m.metadata, m.learn) for m in messages]
    if not cleaned[-1].content:
        place.note(FindingKind.DROP, "empty answer")
        return None
    return cleaned


def _read_passage(values: dict[str, Any], layout: Layout, place: _Place) -> list[Message] | None:
    context = _input_text(values.get(layout.extra["context"]), layout.extra["context"], place)
    question = _input_text(values.get(layout.input_column or ""), layout.input_column or "", place)
    if context and question:
        question = f"{context}\n\n{question}"
    return _pair(question or context, _answer_text(values.get(layout.output_column or ""), layout, place), place)


def _read_alpaca(values: dict[str, Any], layout: Layout, place: _Place) -> list[Message] | None:
    instruction, extra = layout.input_column or "instruction", layout.extra
    parts = [_input_text(values.get(column), column, place) for column in (instruction, extra.get("input")) if column]
    pair = _pair(
        "\n".join(part for part in parts if part),
        _answer_text(values.get(layout.output_column or ""), layout, place),
        place,
    )
    if pair is None:
        return None
    system = place.clean(value_text(values.get(extra.get("system", ""))), "system")
    messages = [Message(Role.SYSTEM, system)] if system else []
    for turn in values.get(extra.get("history", "")) or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise DataError(f"{place.file.path}, row {place.row}, 'history': not pairs of a question and an answer")
        messages.append(Message(Role.USER, place.clean(value_text(turn[0]), "history")))
        messages.append(Message(Role.ASSISTANT, place.clean(value_text(turn[1]), "history")))
    return [*messages, *pair]


def _read_pair(values: dict[str, Any], layout: Layout, place: _Place) -> list[Message] | None:
    columns = [column for column in (layout.input_column, layout.extra.get("second")) if column is not None]
    parts = [_input_text(values.get(column), column, place) for column in columns]
    answer = _answer_text(values.get(layout.output_column or ""), layout, place)
    return _pair("\n".join(part for part in parts if part), answer, place)


def _pair(question: str, answer: str, place: _Place) -> list[Message] | None:
    if not answer:
        place.note(FindingKind.DROP, "empty answer")
        return None
    if not question:
        place.note(FindingKind.DROP, "empty input")
        return None
    return [Message(Role.USER, question), Message(Role.ASSISTANT, answer)]


def _input_text(value: Any, column: str, place: _Place) -> str:
    """An input cell; a list of texts, such as the sentences of a document, is joined."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return place.clean(_INPUT_LIST_JOINT.join(item.strip() for item in value), column)
    return place.clean(value_text(value), column)


def _answer_text(value: Any, layout: Layout, place: _Place) -> str:
    """An answer cell; of several references the first one that is not empty is learnt."""
    column = layout.output_column or ""
    if isinstance(value, dict) and isinstance(value.get("text"), list) and "answer_start" in value:
        value = value["text"]  # SQuAD as the Hugging Face hub lays it out
    several = find_named(REFERENCE_NAMES, (column,)) is not None
    if several and isinstance(value, list) and all(isinstance(item, str) for item in value):
        texts = [item for item in value if item.strip()]
        if len(set(texts)) > 1:
            place.note(FindingKind.REPAIR, "several reference answers, the first one taken")
        value = texts[0] if texts else ""
    return place.clean(value_text(value), column)
