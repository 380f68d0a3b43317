# SPDX-License-Identifier: Apache-2.0
"""JSON Lines and JSON documents -> numbered rows, one at a time, with the line of every fault."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from open_autoglm.data.decoding import LONGEST_LINE
from open_autoglm.data.json_outline import Arrangement, Outline, RowsAt, find_rows
from open_autoglm.data.json_text import load_standard_json
from open_autoglm.errors import DataError

Note = tuple[str, int | None]

_NOT_FINITE: Final = "NaN or Infinity read as null"
_DEEPEST_ROWS: Final = 4
_MOST_MEMBERS: Final = 200
_LONGEST_NAME: Final = 200
_MOST_OUTLINED: Final = 20_000
_EDGE: Final = 16
"""Where JSON is cut off, the fault shows in its last characters: a literal or an escape that is not whole."""


class _Decoder:
    """A JSON decoder that remembers whether it met NaN or Infinity, which JSON does not have."""

    def __init__(self, path: Path) -> None:
        self.met_constant = False
        self._path = path
        self._decoder = json.JSONDecoder(parse_constant=self._constant)

    def _constant(self, _: str) -> None:
        self.met_constant = True

    def decode(self, text: str, line: int) -> Any:
        """The value. line: where `text` starts in the file. Raises DataError with line and column."""
        is_standard, value = load_standard_json(text)
        if is_standard:
            return value
        try:
            return self._decoder.decode(text)
        except (ValueError, RecursionError) as error:
            raise self.explained(error, line, 1) from None

    def decode_at(self, text: str, place: int) -> tuple[Any, int]:
        """The value that starts at a place, and where it ends. Raises what the json module raises."""
        return self._decoder.raw_decode(text, place)

    def explained(self, error: Exception, line: int, column: int) -> DataError:
        """The error for people. line, column: where the text starts in the file."""
        if isinstance(error, json.JSONDecodeError):
            place = error.colno + (column - 1 if error.lineno == 1 else 0)
            return DataError(
                f"{self._path}, line {line + error.lineno - 1}, column {place}: not valid JSON "
                f"({error.msg[:1].lower()}{error.msg[1:]})"
            )
        if isinstance(error, RecursionError):
            return DataError(f"{self._path}, line {line}: JSON nested too deeply to be data; make it flatter")
        return DataError(f"{self._path}, line {line}: not usable JSON ({str(error).split(';')[0].lower()})")


def read_json_lines(lines: Iterable[str], path: Path, notes: list[Note]) -> Iterator[tuple[int, Any]]:
    """One JSON value per line -> (line, object or text); what was set right goes to `notes`.

    Lines end at line feeds only: JSON texts may hold other separators of Unicode.
    Raises DataError for a line that is not JSON, or neither an object nor a string.
    """
    decoder = _Decoder(path)
    for number, line in enumerate(lines, start=1):
        stripped = line.strip(" \t\r\n")
        if not stripped:
            notes.append(("blank line skipped", number))
            continue
        value = decoder.decode(stripped, number)
        if decoder.met_constant:
            decoder.met_constant = False
            notes.append((_NOT_FINITE, number))
        check_row(value, path, f"line {number}", arrays=True)
        yield number, value


class JsonDocument:
    """A JSON document, read from its pieces: only the row at hand is in memory."""

    def __init__(self, pieces: Iterator[str], path: Path, notes: list[Note]) -> None:
        self._pieces = pieces
        self._path = path
        self._notes = notes
        self._decoder = _Decoder(path)
        self._text = ""
        self._place = 0
        self._line, self._column = 1, 1
        self._counted = 0
        self._outlined = 0

    def rows(self, at: RowsAt) -> Iterator[tuple[int, Any]]:
        """The rows, numbered from 1; those of an arrangement by column come from `values_at`, a document for each.

        Raises DataError for a fault, with its line.
        """
        match at.arrangement:
            case Arrangement.SEQUENCE:
                values = self._sequence()
            case Arrangement.MEMBERS:
                values = self._within(at.path, self._members)
            case Arrangement.TEXTS_BY_LABEL:
                values = self._within(at.path, self._labelled)
            case Arrangement.SPLIT:
                rows = self._within(at.path, self._elements)
                values = (_named(row, at.names, self._path, place) for place, row in enumerate(rows, start=1))
            case _:
                values = self._within(at.path, self._elements)
        for number, value in enumerate(values, start=1):
            self._note_constant()
            yield number, value
        self._end()

    def values_at(self, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Elements of the array, or members of the object, at a path of keys, each with its place or key."""
        for key, value in self._within(path, self._entries):
            self._note_constant()
            yield key, value
        self._end()

    def find_rows(self) -> RowsAt:
        """Where the rows lie. Reads as much as is needed: an object to its end.

        Raises DataError when nothing looks like rows, or several things do.
        """
        start = self._peek()
        if start == "[":
            return RowsAt(Arrangement.ARRAY)
        if start != "{":
            value = self._value()
            if self._peek():
                raise self._fault("extra data")
            raise DataError(f"{self._path}: a single JSON {kind_name(value)}; give an array of objects, one per row")
        outline = self._outline(0)
        if self._peek() == "{":
            return RowsAt(Arrangement.SEQUENCE)
        if self._peek():
            raise self._fault("extra data")
        return find_rows(outline, self._path)

    def _outline(self, depth: int) -> Outline:
        """What the next value is made of; of what lies deep, only its kind."""
        start = self._peek()
        if start == "[":
            found = Outline("array")
            texts: list[str] = []
            for element in self._elements():
                if not found.size and isinstance(element, list):
                    found.width = len(element)
                if isinstance(element, str) and len(texts) < _MOST_MEMBERS and len(element) < _LONGEST_NAME:
                    texts.append(element)
                found.size += 1
                found.elements[kind_name(element)] += 1
            found.texts = tuple(texts) if len(texts) == found.size else ()
            return found
        if start == "{" and depth < _DEEPEST_ROWS:
            found = Outline("object")
            for key in self._keys():
                inner = self._outline(depth + 1)
                found.size += 1
                if len(found.members) < _MOST_MEMBERS and self._outlined < _MOST_OUTLINED:
                    self._outlined += 1
                    found.members[key] = inner
            return found
        value = self._value()
        return Outline(kind_name(value), len(value) if isinstance(value, dict | list) else 0)

    def _within(self, path: tuple[str, ...], read: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """What `read` finds at a path of keys; the rest of the document is read past."""
        if not path:
            yield from read()
            return
        for key in self._keys():
            if key == path[0]:
                yield from self._within(path[1:], read)
            else:
                self._pass()

    def _pass(self) -> None:
        """Read past a value without keeping a large one in memory."""
        start = self._peek()
        if start == "[":
            for _ in self._elements():
                pass
        elif start == "{":
            for _ in self._keys():
                self._pass()
        else:
            self._value()

    def _members(self) -> Iterator[Any]:
        for _ in self._keys():
            yield self._value()

    def _labelled(self) -> Iterator[Any]:
        for label in self._keys():
            for text in self._elements():
                yield {"text": text, "label": label}

    def _entries(self) -> Iterator[tuple[str, Any]]:
        if self._peek() == "{":
            for key in self._keys():
                yield key, self._value()
        else:
            for place, value in enumerate(self._elements()):
                yield str(place), value

    def _keys(self) -> Iterator[str]:
        """The keys of an object; who takes one reads its value before the next."""
        self._take("{")
        if self._peek() == "}":
            self._take("}")
            return
        while True:
            if self._peek() != '"':
                raise self._fault("expecting property name enclosed in double quotes")
            key = self._value()
            self._take(":", "expecting ':' delimiter")
            yield key
            if self._peek() != ",":
                break
            self._take(",")
        self._take("}", "expecting ',' delimiter")

    def _end(self) -> None:
        if self._peek():
            raise self._fault("extra data after the end of the document")

    def _sequence(self) -> Iterator[Any]:
        while self._peek():
            yield self._value()

    def _elements(self) -> Iterator[Any]:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return
        while True:
            yield self._value()
            if self._peek() != ",":
                break
            self._take(",")
            if self._peek() == "]":
                raise self._fault("a comma before the end of the array")
        self._take("]", "expecting ',' delimiter")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, self._place = self._decoder.decode_at(self._text, self._place)
                return value
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _EDGE
                size = len(self._text) - self._place
                if size > LONGEST_LINE:
                    raise DataError(
                        f"{self._path}, row at line {self._line_here()}: longer than {LONGEST_LINE >> 20} million "
                        "characters; is a quote or a bracket left open?"
                    ) from None
                within = json.JSONDecodeError(error.msg, self._text[self._place :], error.pos - self._place)
                if not is_cut or not self._fill(size):
                    self._count_lines()
                    raise self._decoder.explained(within, self._line, self._column) from None
            except (ValueError, RecursionError) as error:
                self._count_lines()
                raise self._decoder.explained(error, self._line, self._column) from None

    def _peek(self) -> str:
        """The next character that is not white space; nothing at the end."""
        while True:
            text, place = self._text, self._place
            while place < len(text) and text[place] in " \t\r\n":
                place += 1
            self._place = place
            if place < len(text):
                return text[place]
            if not self._fill(1):
                return ""

    def _take(self, character: str, message: str | None = None) -> None:
        if self._peek() != character:
            raise self._fault(message or f"expecting '{character}'")
        self._place += 1

    def _fill(self, least: int) -> bool:
        """Read on, at least so many characters while there are any; whether there were."""
        self._count_lines()
        parts = [self._text[self._place :]]
        added = 0
        while added < least and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            added += len(piece)
        self._text, self._place, self._counted = "".join(parts), 0, 0
        return added > 0

    def _count_lines(self) -> None:
        """Move line and column to the place."""
        lines = self._text.count("\n", self._counted, self._place)
        if lines:
            self._line += lines
            self._column = self._place - self._text.rindex("\n", self._counted, self._place)
        else:
            self._column += self._place - self._counted
        self._counted = self._place

    def _line_here(self) -> int:
        self._count_lines()
        return self._line

    def _fault(self, message: str) -> DataError:
        self._count_lines()
        return DataError(f"{self._path}, line {self._line}, column {self._column}: not valid JSON ({message})")

    def _note_constant(self) -> None:
        if self._decoder.met_constant:
            self._decoder.met_constant = False
            if (_NOT_FINITE, None) not in self._notes:
                self._notes.append((_NOT_FINITE, None))


def zip_columns(
    columns: Sequence[Iterator[tuple[str, Any]]], names: Sequence[str], path: Path
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Columns that lie one after the other -> rows, numbered from 1. Raises DataError where one has no such row."""
    for number, cells in enumerate(itertools.zip_longest(*columns), start=1):
        keys = {cell[0] if cell is not None else None for cell in cells}
        if len(keys) != 1:
            raise DataError(
                f"{path}, row {number}: not every column has this row ({', '.join(names)}); give lists of one length"
            )
        yield number, {name: cell[1] for name, cell in zip(names, cells, strict=True)}


def _named(row: Any, names: Sequence[str], path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, list) or len(row) != len(names):
        raise DataError(f"{path}, row {number}: not an array of {len(names)} values ({', '.join(names[:8])})")
    return dict(zip(names, row, strict=True))


def check_row(value: Any, path: Path, place: str, *, arrays: bool = False) -> None:
    """Raises DataError for a row that is neither an object nor a text, nor an array where these will do."""
    if not isinstance(value, dict | str) and not (arrays and isinstance(value, list)):
        raise DataError(f"{path}, {place}: a JSON {kind_name(value)}, where an object (or a text) was expected")


def is_object(line: str) -> bool:
    """Whether a line is a JSON object by itself."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def kind_name(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "object", list: "array", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")
