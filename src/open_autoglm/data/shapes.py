# SPDX-License-Identifier: Apache-2.0
"""Rows of any shape that users bring -> Examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data.answers import dump_answer
from open_autoglm.data.choices import chosen_letter, options_of
from open_autoglm.data.column_names import REFERENCE_NAMES
from open_autoglm.data.columns import find_named, value_text
from open_autoglm.data.conversations import read_dialogue, read_prompt, read_turns
from open_autoglm.data.example import Example, Media
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.data.layouts import Layout, Shape
from open_autoglm.data.plain_text import CHUNK_CHARACTERS, chunk_text
from open_autoglm.data.readers import RowStream
from open_autoglm.data.rows import FileRows, Row
from open_autoglm.data.tool_calls import UnreadableCallError, calls_in_answer, read_tools
from open_autoglm.data.transcripts import read_transcript
from open_autoglm.data.turns import as_turns, parsed
from open_autoglm.data.verdicts import better_of
from open_autoglm.errors import DataError

_INPUT_LIST_JOINT: Final = " "


def read_examples(file: FileRows, layout: Layout, log: FindingLog) -> list[Example]:
    """Rows -> Examples, in order; what cannot be used is noted in `log`.

    Raises DataError, with file, row and column, for a text that is not Unicode or holds a NUL.
    """
    reader = RowReader(file, layout, log)
    return [example for row in file for example in reader.read(row)]


class RowReader:
    """Reads the rows of a file by its layout; what cannot be used is noted in `log`."""

    def __init__(self, file: FileRows | RowStream, layout: Layout, log: FindingLog) -> None:
        self._file, self._layout, self._log = file, layout, log
        readers: dict[Shape, Callable[[dict[str, Any], Layout, _Place], _Read | None]] = {
            Shape.DIALOGUE: _read_dialogue,
            Shape.PASSAGE: _read_passage,
            Shape.TABLE: _read_table,
            Shape.CHOICE: _read_choice,
            Shape.FIELDS: _read_fields,
        }
        self._reader = readers.get(layout.shape, _read_pair)

    def read(self, row: Row) -> Iterator[Example]:
        """The examples in a row: one or none of most shapes, any number of a running text. Raises DataError."""
        layout, place = self._layout, _Place(self._file, row.number, self._log, row.file)
        if layout.shape is Shape.PLAIN_TEXT:
            yield from _read_plain_text(row, layout, place)
            return
        if not isinstance(row.values, dict):
            raise DataError(
                f"{self._file.path}, row {row.number}: a text, where columns {', '.join(layout.columns)} are read"
            )
        _check_columns(row.values, layout, place)
        values = _settled(row.values, layout, place) if "winner" in layout.extra else row.values
        try:
            read = None if values is None else self._reader(values, layout, place)
        except UnreadableCallError:
            place.note(FindingKind.DROP, "a call whose arguments are not a JSON object")
            return
        if values is not None and read is not None:
            yield _finished(read, values, layout, place)


@dataclass
class _Read:
    """What a row holds besides the columns that any shape may have."""

    messages: list[Message]
    media: list[Media] = field(default_factory=list)
    rejected: list[Message] = field(default_factory=list)


def _settled(values: dict[str, Any], layout: Layout, place: _Place) -> dict[str, Any] | None:
    """The row with the better answer in the output column, as its winner column says; None where it names none."""
    one, other = layout.output_column or "", layout.extra["rejected"]
    better = better_of(values.get(layout.extra["winner"]), one, other)
    if better is None:
        place.note(FindingKind.DROP, "neither answer is called the better one")
        return None
    return values if better == one else {**values, one: values.get(other), other: values.get(one)}


def _check_columns(values: dict[str, Any], layout: Layout, place: _Place) -> None:
    """Of several files read as one, each must have the columns that are read."""
    if not place.within:
        return
    for column in (layout.input_column, layout.output_column):
        if column is not None and column not in values and len(values) > 0:
            raise DataError(
                f"{place.file.path}, {place.within}, row {place.row}: no column '{column}', which other files have (it "
                f"has: {', '.join(values)}); give files that are laid out alike"
            )


def _finished(read: _Read, values: dict[str, Any], layout: Layout, place: _Place) -> Example:
    messages, extra = read.messages, layout.extra
    media = list(read.media)
    for kind in ("image", "video", "audio") if extra else ():
        if kind in extra:
            media.extend(_media(values.get(extra[kind]), kind))
    if media:
        messages = _with_placeholders(messages, media, place)
    rejected = read.rejected
    if not rejected and (column := extra.get("rejected")) is not None and values.get(column):
        text = _answer_text(values.get(column), replace(layout, output_column=column), place)
        rejected = [Message(Role.ASSISTANT, text)] if text else []
    desirable = _truth(values.get(extra["tag"]), extra["tag"], place) if "tag" in extra else None
    tools = read_tools(values, named=layout.shape is not Shape.DIALOGUE) if layout.shape is not Shape.TABLE else ()
    if tools and layout.shape is not Shape.DIALOGUE:
        messages = [*messages[:-1], calls_in_answer(messages[-1], tools)]
    return Example(tuple(messages), place.source, tools, tuple(rejected), desirable, tuple(media))


def _truth(value: Any, column: str, place: _Place) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    folded = str(value).strip().casefold()
    if folded in ("true", "1", "yes", "是", "好"):
        return True
    if folded in ("false", "0", "no", "否", "差"):
        return False
    if not folded:
        return None
    raise DataError(f"{place.file.path}, row {place.row}, '{column}': neither true nor false, but '{folded[:40]}'")


def _media(value: Any, kind: str) -> list[Media]:
    value = parsed(value)
    found: list[Media] = []
    for item in value if isinstance(value, list) else [value]:
        reference = item.get("path") or item.get("url") or item.get("bytes") if isinstance(item, dict) else item
        if isinstance(reference, str) and reference:
            found.append(Media(kind, reference))
    return found


def _with_placeholders(messages: list[Message], media: list[Media], place: _Place) -> list[Message]:
    """Every medium has a placeholder: where a row has none of a kind, they come before the first user message."""
    for kind in dict.fromkeys(item.kind for item in media):
        wanted = sum(item.kind == kind for item in media)
        found = sum(message.content.count(f"<{kind}>") for message in messages)
        if found not in (0, wanted):
            raise DataError(
                f"{place.file.path}, row {place.row}: {found} times <{kind}> in the texts, but {wanted} {kind} files; "
                "give as many of one as of the other"
            )
        first = next((index for index, message in enumerate(messages) if message.role is Role.USER), None)
        if found == 0 and first is not None:
            place.note(FindingKind.REPAIR, f"<{kind}> put before the text, which did not say where it belongs")
            content = f"{f'<{kind}>' * wanted}\n{messages[first].content}"
            messages = [*messages[:first], replace(messages[first], content=content), *messages[first + 1 :]]
    return messages


@dataclass(slots=True)
class _Place:
    """A row, while it is read."""

    file: FileRows | RowStream
    row: int
    log: FindingLog
    within: str = ""

    @property
    def name(self) -> str:
        """The file's, as findings have it."""
        return self.within or self.file.name

    @property
    def source(self) -> str:
        return f"{self.name}:{self.row}"

    def note(self, kind: FindingKind, what: str) -> None:
        self.log.note(kind, what, self.name, self.row)

    def clean(self, text: str, column: str) -> str:
        """A text without outer white space. Raises DataError for what no tokenizer can read."""
        if "\0" in text:
            raise DataError(f"{self.file.path}, row {self.row}, '{column}': holds a NUL character; remove it")
        if not text.isascii():
            self._check_unicode(text, column)
        stripped = text.strip()
        if stripped != text and stripped:
            self.note(FindingKind.REPAIR, "white space around a text removed")
        return stripped

    def _check_unicode(self, text: str, column: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{self.file.path}, row {self.row}, '{column}': character {error.start + 1} is half a surrogate pair "
                f"(\\u{ord(text[error.start]):04x}), which is not Unicode text; repair or remove the row"
            ) from None

    def cleaned(self, message: Message, column: str) -> Message:
        """A message with each of its texts clean."""
        for call in message.tool_calls:
            self.clean(call.name + call.arguments, column)
        content, reasoning = self.clean(message.content, column), message.reasoning
        return replace(message, content=content, reasoning=self.clean(reasoning, column) if reasoning else "")


def _read_plain_text(row: Row, layout: Layout, place: _Place) -> Iterator[Example]:
    column = layout.output_column or "text"
    is_text = isinstance(row.values, str) and place.file.format == "text"
    text = row.values if isinstance(row.values, str) else value_text(row.values.get(column))
    text = text.replace("\r\n", "\n") if is_text else place.clean(text.replace("\r\n", "\n"), column)
    if not text:
        place.note(FindingKind.DROP, f"nothing in '{column}'")
        return
    for line, piece in chunk_text(text, CHUNK_CHARACTERS):
        number = row.number + line - 1 if is_text else row.number
        piece_place = _Place(place.file, number, place.log, row.file)
        yield Example((Message(Role.ASSISTANT, piece_place.clean(piece, column)),), piece_place.source)


def _read_dialogue(values: dict[str, Any], layout: Layout, place: _Place) -> _Read | None:
    column = layout.input_column or "messages"
    where = f"{place.file.path}, row {place.row}"
    if not values.get(column):
        place.note(FindingKind.DROP, f"nothing in '{column}'")
        return None
    chosen, rejected = layout.extra.get("chosen"), layout.extra.get("rejected")
    media: list[Media] = []
    if layout.by.startswith("--columns") and (said := as_turns(values.get(column), named=True)) is not None:
        values = {**values, column: said}
    if chosen is not None:
        messages, media = read_prompt(values, column, where)
        messages += _answer_turns(values.get(chosen), chosen, where)
    else:
        messages, cut, media = read_dialogue(values, column, where)
        if cut:
            place.note(FindingKind.REPAIR, "turns after the assistant's last one left off")
    cleaned = [place.cleaned(message, column) for message in messages]
    if not cleaned[-1].content and not cleaned[-1].calls:
        place.note(FindingKind.DROP, "empty answer")
        return None
    worse: list[Message] = []
    if rejected is not None and values.get(rejected):
        worse = _answer_turns(values[rejected], rejected, where)
        if len(worse) > 1:
            # A whole dialogue: what it shares with the other one is the prompt.
            shared = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(messages, worse, strict=False))
            )
            worse = worse[shared:]
    return _Read(cleaned, media, [place.cleaned(m, column) for m in worse])


def _answer_turns(value: Any, column: str, place: str) -> list[Message]:
    """An answer beside a dialogue: a text, a message, or several."""
    value = parsed(value)
    if isinstance(value, str) and (turns := read_transcript(value)) is not None:
        value = turns
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return read_turns(value, column, place, [])
    return [Message(Role.ASSISTANT, value_text(value))]


def _read_passage(values: dict[str, Any], layout: Layout, place: _Place) -> _Read | None:
    context = _context_text(values, layout, place)
    question = _input_text(values.get(layout.input_column or ""), layout.input_column or "", place)
    if context and question:
        question = f"{context}\n\n{question}"
    return _pair(question or context, _answer_text(values.get(layout.output_column or ""), layout, place), place)


def _context_text(values: dict[str, Any], layout: Layout, place: _Place) -> str:
    """The passage; of several documents in lists or objects, their texts line by line."""
    column = layout.extra["context"]
    value = values.get(column)
    nested = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(part, dict | list) for part in value)
    )
    return place.clean("\n".join(_texts_in(value)), column) if nested else _input_text(value, column, place)


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        yield " ".join(value)
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(inner)


def _read_choice(values: dict[str, Any], layout: Layout, place: _Place) -> _Read | None:
    """The question with a line for each option, and the letter of the right one."""
    if layout.choices is None:
        raise ValueError("a layout of choices without them")
    asked = _input_text(values.get(layout.input_column or ""), layout.input_column or "", place)
    context = _context_text(values, layout, place) if "context" in layout.extra else ""
    options = [f"{label}. {text}" for label, text in options_of(values, layout.choices)]
    letter = chosen_letter(values, layout.choices)
    if letter is None:
        place.note(FindingKind.DROP, "the answer names none of the options")
        return None
    parts = [part for part in (f"{context}\n" if context else "", asked, *options) if part]
    return _pair(place.clean("\n".join(parts), layout.input_column or "") if asked else "", letter, place)


def _read_fields(values: dict[str, Any], layout: Layout, place: _Place) -> _Read | None:
    """What is to be read out of the text, as one JSON object; empty cells are not in it."""
    text = _input_text(values.get(layout.input_column or ""), layout.input_column or "", place)
    cells = {name: values.get(name) for name in layout.features}
    answer = {
        name: place.clean(value, name) if isinstance(value, str) else value
        for name, value in cells.items()
        if value is not None and value_text(value).strip()
    }
    return _pair(text, dump_answer(answer), place)


def _read_table(values: dict[str, Any], layout: Layout, place: _Place) -> _Read | None:
    """A line for each feature that has a value."""
    cells = {name: _input_text(values.get(name), name, place) for name in layout.features}
    question = "\n".join(f"{name}: {text}" for name, text in cells.items() if text)
    return _pair(question, _answer_text(values.get(layout.output_column or ""), layout, place), place)


def _read_pair(values: dict[str, Any], layout: Layout, place: _Place) -> _Read | None:
    extra = layout.extra
    columns = (layout.input_column, extra.get("input"), extra.get("second"))
    parts = [_input_text(values.get(column), column, place) for column in columns if column is not None]
    answer = _answer_text(values.get(layout.output_column or ""), layout, place)
    read = _pair("\n".join([part for part in parts if part]), answer, place)
    if read is None:
        return None
    if "system" not in extra and "history" not in extra:
        return read
    system = place.clean(value_text(values.get(extra["system"])), "system") if "system" in extra else ""
    messages = [Message(Role.SYSTEM, system)] if system else []
    for turn in (parsed(values.get(extra["history"])) or []) if "history" in extra else ():
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise DataError(f"{place.file.path}, row {place.row}, 'history': not pairs of a question and an answer")
        messages.append(Message(Role.USER, place.clean(value_text(turn[0]), "history")))
        messages.append(Message(Role.ASSISTANT, place.clean(value_text(turn[1]), "history")))
    return _Read([*messages, *read.messages])


def _pair(question: str, answer: str, place: _Place) -> _Read | None:
    if not answer:
        place.note(FindingKind.DROP, "empty answer")
        return None
    if not question:
        place.note(FindingKind.DROP, "empty input")
        return None
    return _Read([Message(Role.USER, question), Message(Role.ASSISTANT, answer)])


def _input_text(value: Any, column: str, place: _Place) -> str:
    """An input cell; a list of texts, such as the sentences of a document, is joined."""
    if isinstance(value, str):
        return place.clean(value, column)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return place.clean(_INPUT_LIST_JOINT.join(item.strip() for item in value), column)
    return place.clean(value_text(value), column)


def _answer_text(value: Any, layout: Layout, place: _Place) -> str:
    """An answer cell; of several references the first one that is not empty is learnt."""
    column = layout.output_column or ""
    if isinstance(value, dict) and isinstance(value.get("text"), list) and "answer_start" in value:
        value = value["text"]  # SQuAD as the Hugging Face hub lays it out
    if isinstance(value, str):
        return place.clean(value, column)
    several = (
        find_named(REFERENCE_NAMES, (column,)) is not None or layout.by == "content" or layout.shape is Shape.PASSAGE
    )
    if layout.shape is Shape.PASSAGE and isinstance(value, list) and value and isinstance(value[0], dict):
        value = [item.get("text") for item in value if isinstance(item, dict)]
    if several and not layout.lists and isinstance(value, list) and all(isinstance(item, str) for item in value):
        texts = [item for item in value if item.strip()]
        if len(set(texts)) > 1:
            place.note(FindingKind.REPAIR, "several reference answers, the first one taken")
        value = texts[0] if texts else ""
    return place.clean(value_text(value), column)
