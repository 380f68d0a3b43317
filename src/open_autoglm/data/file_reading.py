# SPDX-License-Identifier: Apache-2.0
"""One pass over one file of any format -> numbered rows: JSONL, JSON, CSV, TSV, Parquet, Arrow and plain text."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from open_autoglm.data.columnar import (
    ARROW_FILE_MARK,
    ARROW_STREAM_MARK,
    PARQUET_MARK,
    read_arrow,
    read_arrow_stream,
    read_parquet,
)
from open_autoglm.data.decoding import TextPieces, split_lines
from open_autoglm.data.files import format_by_name
from open_autoglm.data.json_outline import Arrangement, RowsAt
from open_autoglm.data.json_rows import JsonDocument, check_row, is_object, read_json_lines, zip_columns
from open_autoglm.data.nesting import find_nesting, unnest
from open_autoglm.data.plugin_reading import reader_of, rows_of_reader
from open_autoglm.data.tables import name_values, read_delimited
from open_autoglm.data.unpacking import CHUNK, open_unpacked

_BLOCK: Final = 8 << 20
_NESTING_ROWS: Final = 400


class FileReading:
    """One pass over one file."""

    def __init__(self, path: Path, shown: Path) -> None:
        self.format = ""
        self.encoding = ""
        self._path = path
        self._shown = shown
        self._notes: list[tuple[str, int | None]] = []
        self._pieces: TextPieces | None = None
        self._stream: IO[bytes] | None = None

    def all_notes(self) -> list[tuple[str, int | None]]:
        """What was set right; complete after the last row."""
        first: list[tuple[str, int | None]] = []
        if self._pieces is not None and self._pieces.repaired:
            first.append((f"read as {self._pieces.encoding}", None))
        return first + self._notes

    def position(self) -> int:
        """How many bytes of the file have been read, packed ones where it is packed; 0 where that is not known."""
        return self._stream.tell() if self._stream is not None and not self._stream.closed else 0

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Numbered rows."""
        if reader := reader_of(self._shown):
            self.format, self.encoding = reader, "of a plugin"
            yield from rows_of_reader(reader, self._path, self._shown)
            return
        with open_unpacked(self._path) as (stream, packing):
            start = stream.read(8)
        known = format_by_name(self._path)
        if start.startswith((PARQUET_MARK, ARROW_FILE_MARK)) or (known == "parquet" and start.strip()):
            yield from self._columnar(packing, is_parquet=not start.startswith(ARROW_FILE_MARK))
        elif start.startswith(ARROW_STREAM_MARK):
            self.format, self.encoding = "arrow", "binary"
            with open_unpacked(self._path) as (stream, _):
                yield from self._unnested(enumerate(read_arrow_stream(_Full(stream).read, self._shown)[1], start=1))
        else:
            with open_unpacked(self._path) as (stream, _):
                self._stream = stream
                self._pieces = TextPieces(stream, self._shown)
                yield from self._text_rows(self._pieces, known)

    def _columnar(self, packing: str | None, *, is_parquet: bool) -> Iterator[tuple[int, dict[str, Any] | str]]:
        self.format, self.encoding = ("parquet" if is_parquet else "arrow"), "binary"
        with tempfile.TemporaryDirectory() as folder:
            path = self._path
            if packing is not None:
                path = Path(folder) / "unpacked"
                with open_unpacked(self._path) as (stream, _), path.open("wb") as copy:
                    shutil.copyfileobj(stream, copy, CHUNK)
            read = read_parquet if is_parquet else read_arrow
            yield from self._unnested(enumerate(read(path, self._shown)[1], start=1))

    def _text_rows(self, pieces: TextPieces, known: str | None) -> Iterator[tuple[int, dict[str, Any] | str]]:
        parts: Iterator[str] = iter(pieces)
        head = next(parts, "")
        self.encoding = pieces.encoding
        while not head.strip() and (more := next(parts, "")):
            head += more
        if "\r" in head and "\n" not in head:
            self._notes.append(("lines ended by carriage returns", None))
            head = head.replace("\r", "\n")
            parts = (part.replace("\r", "\n") for part in parts)
        self.format = _guess_format(known, bool(self._path.suffix), head)
        whole = itertools.chain((head,), parts)
        for number, values in self._rows_of(whole, head):
            self.encoding = pieces.encoding
            yield number, values

    def _rows_of(self, pieces: Iterator[str], head: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
        if self.format == "json":
            yield from self._json_rows(pieces, head)
        elif self.format == "jsonl":
            yield from self._unnested(read_json_lines(split_lines(pieces, self._shown), self._shown, self._notes))
        elif self.format in ("csv", "tsv"):
            lines = split_lines(pieces, self._shown)
            _, rows = read_delimited(lines, self._shown, tabs=self.format == "tsv", notes=self._notes)
            yield from rows
        else:
            yield from _blocks(pieces)

    def _json_rows(self, pieces: Iterator[str], head: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
        first, _, rest = head.strip().partition("\n")
        if rest.strip() and is_object(first):
            self.format = "jsonl"
            self._notes.append(("JSON Lines under the name of JSON", None))
            yield from read_json_lines(split_lines(pieces, self._shown), self._shown, self._notes)
            return
        at = RowsAt(Arrangement.ARRAY)
        if not head.lstrip().startswith("["):
            with open_unpacked(self._path) as (stream, _):
                at = JsonDocument(iter(TextPieces(stream, self._shown)), self._shown, []).find_rows()
            if at.arrangement is Arrangement.SEQUENCE:
                self._notes.append(("JSON objects one after the other under the name of JSON", None))
            elif at.arrangement is not Arrangement.ARRAY:
                self._notes.append((f"rows read from {at.arrangement.value}", None))
        if at.arrangement in (Arrangement.COLUMNS, Arrangement.INDEXED_COLUMNS):
            yield from self._unnested(self._side_by_side(at))
        else:
            yield from self._unnested(JsonDocument(pieces, self._shown, self._notes).rows(at))

    def _side_by_side(self, at: RowsAt) -> Iterator[tuple[int, Any]]:
        """The rows of columns that lie one after the other: the file is read once for each, all at the same time."""
        with ExitStack() as opened:
            columns: list[Iterator[tuple[str, Any]]] = []
            for name in at.names:
                stream, _ = opened.enter_context(open_unpacked(self._path))
                document = JsonDocument(iter(TextPieces(stream, self._shown)), self._shown, self._notes)
                columns.append(document.values_at((*at.path, name)))
            yield from zip_columns(columns, at.names, self._shown)

    def _unnested(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, dict[str, Any] | str]]:
        head = list(itertools.islice(rows, _NESTING_ROWS))
        whole = itertools.chain(head, rows)
        if head and isinstance(head[0][1], list):
            yield from name_values(whole, self._shown, self._notes)
            return
        nesting = find_nesting([value for _, value in head], is_whole=len(head) < _NESTING_ROWS)
        if "paragraphs" in nesting.keys:
            self.format = "squad"
        elif nesting:
            self._notes.append((nesting.describe(), None))
        for number, value in unnest(whole, nesting, self._shown):
            check_row(value, self._shown, f"row {number}")
            yield number, value


class _Full:
    """A stream whose `read` gives all that was asked for, while there is so much."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := self._stream.read(min(size, CHUNK))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _blocks(pieces: Iterator[str]) -> Iterator[tuple[int, str]]:
    """A running text -> (line where it starts, blocks of some megabytes), cut between paragraphs where it has any."""
    line, text = 1, ""
    for piece in pieces:
        text += piece
        if len(text) > _BLOCK:
            between = text.rfind("\n\n", _BLOCK // 2)
            cut = between + 2 if between >= 0 else text.rfind("\n") + 1 or len(text)
            yield line, text[:cut]
            line += text.count("\n", 0, cut)
            text = text[cut:]
    if text:
        yield line, text


def _guess_format(known: str | None, has_extension: bool, head: str) -> str:
    """By extension, but a JSON array named `.jsonl` is read as one; by content for other extensions."""
    head = head.lstrip()
    start = head[:1]
    if known == "jsonl":
        return "json" if start == "[" and "\n[" not in head else "jsonl"
    if known is not None and known not in ("arrow", "parquet"):
        return known
    first = head.split("\n", 1)[0]
    if start == "[":
        return "json"
    if start == "{":
        return "jsonl" if is_object(first) else "json"
    if "\t" in first:
        return "tsv"
    return "csv" if _looks_delimited(head, has_extension) else "text"


def _looks_delimited(head: str, has_extension: bool) -> bool:
    """Whether the first lines have equally many commas; any in the first line will do under an unknown extension."""
    lines = [line for line in head.split("\n")[:20] if line.strip()]
    counts = {line.count(",") for line in lines}
    return "," in lines[0] and (has_extension or (len(lines) > 2 and len(counts) == 1))
