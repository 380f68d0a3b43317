# SPDX-License-Identifier: Apache-2.0
"""CSV, TSV and Parquet -> rows by column name."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError, DataError

Note = tuple[str, int | None]

_FIELD_LIMIT: Final = 1 << 30
_DELIMITERS: Final = (",", "\t", ";", "|")
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"', re.DOTALL)


def read_delimited(
    text: str, path: Path, *, tabs: bool
) -> tuple[list[tuple[int, dict[str, str]]], tuple[str, ...], list[Note]]:
    """A table with a header line -> (line, values by column), the columns, and what was set right.

    tabs: the extension says TSV. The delimiter is the extension's, unless the header holds another and not that one.
    A first line whose values occur again in their own columns is data: columns are then named `column_1` and so on.
    Raises DataError, with the line, for a row that has more or fewer fields than the header, or a quote left open.
    """
    delimiter = _choose_delimiter(text, "\t" if tabs else ",")
    notes: list[Note] = []
    if delimiter != ("\t" if tabs else ","):
        notes.append((f"fields separated by {_spell(delimiter)}", None))
    if delimiter == "\t" and not _is_quoted(text):
        lines = text.removesuffix("\n").split("\n")
        records = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, start=1)]
    else:
        records = _parse_csv(text, path, delimiter)
    header, body, skipped = _split_header(records, path)
    notes.extend(skipped)
    _check_ragged(header, body, path)
    if _is_data(header, [fields for _, fields in body]):
        body.insert(0, (records[0][0], header))
        header = [f"column_{place}" for place in range(1, len(header) + 1)]
        notes.append((f"no header line found: columns named {header[0]} to {header[-1]}", None))
    columns = tuple(header)
    return [(number, dict(zip(columns, fields, strict=True))) for number, fields in body], columns, notes


def read_parquet(data: bytes, path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A Parquet file -> rows by column, and the columns.

    Raises DataError for a damaged file, ConfigurationError when polars is not installed.
    """
    try:
        import polars
    except ImportError:
        raise ConfigurationError(
            f"{path}: reading Parquet needs polars; install it with `pip install 'open-autoglm[build]'`"
        ) from None
    try:
        frame = polars.read_parquet(io.BytesIO(data))
    except (polars.exceptions.PolarsError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    return frame.to_dicts(), tuple(frame.columns)


def _parse_csv(text: str, path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """CSV with quotes -> (line where the record starts, fields)."""
    # A field may hold a whole document; the module's own limit of 128 kB is for nobody's good here.
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for fields in reader:
            records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV ({error}); check the quotes of this row") from None
    return records


def _split_header(
    records: list[tuple[int, list[str]]], path: Path
) -> tuple[list[str], list[tuple[int, list[str]]], list[Note]]:
    """The header's names, the other records, and notes on blank lines and headers that come again."""
    notes: list[Note] = []
    kept: list[tuple[int, list[str]]] = []
    for number, fields in records:
        if not any(field.strip() for field in fields) and len(fields) <= 1:
            notes.append(("blank line skipped", number))
        else:
            kept.append((number, fields))
    if not kept:
        raise DataError(f"{path} holds no rows; give a file with data in it")
    header = [name.strip() for name in kept[0][1]]
    body = []
    for number, fields in kept[1:]:
        if [field.strip() for field in fields] == header and len(header) > 1:
            notes.append(("header line that comes again skipped", number))
        else:
            body.append((number, fields))
    if not body:
        raise DataError(f"{path} holds a header line and no rows; give a file with data in it")
    return header, body, notes


def _check_ragged(header: list[str], body: list[tuple[int, list[str]]], path: Path) -> None:
    for number, fields in body:
        if len(fields) != len(header):
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, where the header has {len(header)} "
                f"({', '.join(header[:8])}); put fields that hold the separator in double quotes"
            )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated and not _is_data(header, [fields for _, fields in body]):
        raise DataError(f"{path}, line 1: the column '{repeated[0]}' occurs twice; give each column a name of its own")
    if "" in header:
        # Written by pandas for its index; a name makes it addressable.
        header[header.index("")] = "index" if "index" not in header else "column_1"


def _is_data(header: list[str], body: list[list[str]]) -> bool:
    """Whether the first line is a row like the others: a value of it comes at least twice again in its column."""
    return any(name and sum(fields[place].strip() == name for fields in body) > 1 for place, name in enumerate(header))


def _choose_delimiter(text: str, expected: str) -> str:
    header = text.lstrip("\r\n").split("\n", 1)[0]
    if expected in header:
        return expected
    counts = {delimiter: header.count(delimiter) for delimiter in _DELIMITERS}
    best = max(_DELIMITERS, key=lambda delimiter: counts[delimiter])
    return best if counts[best] else expected


def _is_quoted(text: str) -> bool:
    """Whether a TSV file uses quotes as CSV does, and not as plain characters of its texts.

    It does if every field that begins with a quote is well-formed, and quotes are doubled or protect a separator.
    """
    if '"' not in text:
        return False
    fields = [field.rstrip("\r") for line in text.split("\n") for field in line.split("\t")]
    opened = [field for field in fields if field.startswith('"')]
    if not opened:
        return False
    if all(_QUOTED.fullmatch(field) for field in opened):
        first_columns = [line.split("\t", 1)[0] for line in text.strip().split("\n")]
        every = all(field.startswith('"') for field in first_columns[1:]) or len(opened) > len(fields) // 3
        return every or any('""' in field[1:-1] for field in opened)
    # A quote opened in one piece and closed in a later one protects a tab or a line break.
    return _has_equal_records(text)


def _has_equal_records(text: str) -> bool:
    csv.field_size_limit(_FIELD_LIMIT)
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error:
        return False
    plain = {line.count("\t") for line in text.removesuffix("\n").split("\n")}
    return len({len(fields) for fields in records if fields}) == 1 and len(plain) > 1


def _spell(delimiter: str) -> str:
    return {"\t": "tabs", ";": "semicolons", "|": "vertical bars", ",": "commas"}[delimiter]
