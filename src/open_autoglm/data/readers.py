# SPDX-License-Identifier: Apache-2.0
"""Any file of rows -> numbered rows: JSONL, JSON, CSV, TSV, Parquet and plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from open_autoglm.data.decoding import DecodedText, decode_text, read_bytes
from open_autoglm.data.findings import FindingKind
from open_autoglm.data.json_rows import read_json_lines, read_json_value
from open_autoglm.data.tables import read_delimited, read_parquet
from open_autoglm.errors import DataError

_EXTENSIONS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_PARQUET_MARK: Final = b"PAR1"


@dataclass(frozen=True)
class Row:
    """One row. number: of the line where it starts, or its place in an array, from 1. values: by column, or a text."""

    number: int
    values: dict[str, Any] | str


@dataclass(frozen=True)
class FileRows:
    """The rows of one file.

    name: the file as findings call it. columns: in order of appearance, empty for texts. repairs: what was set right
    on the way, with the row, or None for the file as a whole.
    """

    path: Path
    name: str
    format: str
    encoding: str
    rows: Sequence[Row]
    columns: tuple[str, ...] = ()
    repairs: Sequence[tuple[FindingKind, str, str, int | None]] = field(default=())

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def read_rows(path: Path, *, name: str | None = None) -> FileRows:
    """All rows of a file; its format is known by the extension, or else by what it holds.

    name: what to call the file in findings and in `Example.source`; its own name if not given.
    Raises DataError, naming file and line, when it is missing, empty, binary, ragged or not valid in its format, and
    ConfigurationError when a library to read it is not installed.
    """
    name = name or path.name
    data = read_bytes(path)
    if data.startswith(_PARQUET_MARK) or _EXTENSIONS.get(path.suffix.lower()) == "parquet":
        records, columns = read_parquet(data, path)
        rows = [Row(number, values) for number, values in enumerate(records, start=1)]
        return _checked(FileRows(path, name, "parquet", "binary", rows, columns))
    decoded = decode_text(data, path)
    del data
    notes: list[tuple[str, int | None]] = []
    if decoded.repaired:
        notes.append((f"read as {decoded.encoding}", None))
    kind = _guess_format(path, decoded)
    found: list[tuple[int, Any]]
    columns: tuple[str, ...] = ()
    if kind == "json":
        kind, found, added = read_json_value(decoded.text, path)
        notes.extend(added)
    elif kind == "jsonl":
        found, added = read_json_lines(decoded.text, path)
        notes.extend(added)
    elif kind in ("csv", "tsv"):
        found, columns, added = read_delimited(decoded.text, path, tabs=kind == "tsv")
        notes.extend(added)
    else:
        found = [(1, decoded.text)]
    rows = [Row(number, values) for number, values in found]
    repairs = [(FindingKind.REPAIR, what, name, row) for what, row in notes]
    return _checked(FileRows(path, name, kind, decoded.encoding, rows, columns or _columns_of(rows), repairs))


def _checked(file: FileRows) -> FileRows:
    if not file.rows:
        raise DataError(f"{file.path} holds no rows; give a file with data in it")
    texts = sum(isinstance(row.values, str) for row in file.rows)
    if 0 < texts < len(file.rows):
        odd = next(row for row in file.rows if isinstance(row.values, str) != (texts * 2 > len(file.rows)))
        what = "a text" if isinstance(odd.values, str) else "an object"
        raise DataError(f"{file.path}, row {odd.number}: {what}, where most rows are not; make all rows alike")
    return file


def _columns_of(rows: Sequence[Row]) -> tuple[str, ...]:
    columns: dict[str, None] = {}
    for row in rows:
        if isinstance(row.values, dict):
            columns.update(dict.fromkeys(row.values))
    return tuple(columns)


def _guess_format(path: Path, decoded: DecodedText) -> str:
    """By extension, but a JSON array named `.jsonl` is read as one; by content for other extensions."""
    known = _EXTENSIONS.get(path.suffix.lower())
    start = decoded.text.lstrip()[:1]
    if known == "jsonl":
        return "json" if start == "[" and "\n[" not in decoded.text.lstrip() else "jsonl"
    if known is not None:
        return known
    if start == "[":
        return "json"
    if start == "{":
        return "jsonl"
    header = decoded.text.lstrip().split("\n", 1)[0]
    if "\t" in header:
        return "tsv"
    return "csv" if "," in header and path.suffix else "text"
