# SPDX-License-Identifier: Apache-2.0
"""Any file of rows -> numbered rows: JSONL, JSON, CSV, TSV, Parquet, Arrow and plain text, compressed or not.

`open_rows` reads a few rows at a time, however large the files are; `read_rows` reads all of them into memory.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from open_autoglm.data.file_reading import FileReading
from open_autoglm.data.files import find_files
from open_autoglm.data.findings import FindingKind
from open_autoglm.data.rows import FileRows, Repair, Row
from open_autoglm.data.unpacking import STDIN, keep_stdin
from open_autoglm.errors import DataError

_SAMPLE_ROWS: Final = 2000
_SAMPLED_FROM: Final = 20_000
_HEAD_ROWS: Final = 20_000
_SAMPLE_CHARACTERS: Final = 16 << 20


class RowStream:
    """The rows of one file, or of several that are read as one, from the beginning on each iteration.

    format, encoding, columns, repairs: as far as has been read; complete after a whole iteration.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.format = ""
        self.encoding = ""
        self.repairs: list[Repair] = []
        self._columns: dict[str, None] = {}
        self._stdin = keep_stdin() if str(path) == STDIN else None
        self._files = [self._stdin] if self._stdin else find_files(path)
        self._begun: Iterator[Row] | None = None
        self._reading: FileReading | None = None
        self._bytes_before = 0
        self._bytes = sum(file.stat().st_size for file in self._files if file.is_file())

    @property
    def columns(self) -> tuple[str, ...]:
        """In order of appearance; empty for texts."""
        return tuple(self._columns)

    def close(self) -> None:
        """Remove what was kept of standard input."""
        if self._stdin is not None:
            self._stdin.unlink(missing_ok=True)

    @property
    def share_read(self) -> float:
        """How much of all bytes has been read in this iteration, between 0 and 1; 0 where that is not known."""
        done = self._bytes_before + (self._reading.position() if self._reading is not None else 0)
        return min(1.0, done / self._bytes) if self._bytes else 0.0

    def head(self, rows: int = _HEAD_ROWS) -> FileRows:
        """The first rows, at most so many and about 16 million characters; the next iteration goes on behind them.

        That iteration hands them out too, without reading them again.
        """
        following = self._rows()
        kept: list[Row] = []
        size = 0
        for row in following:
            kept.append(row)
            size += row.size
            if len(kept) >= rows or size > _SAMPLE_CHARACTERS:
                break
        self._begun = itertools.chain(iter(kept), following)  # which lets go of the first rows behind them
        return self.describe(kept)

    def describe(self, rows: Sequence[Row]) -> FileRows:
        """Some rows, with what has been found out about the file so far."""
        return FileRows(self.path, self.name, self.format, self.encoding, rows, self.columns, tuple(self.repairs))

    def __iter__(self) -> Iterator[Row]:
        """All rows. Raises DataError, naming file and line, and ConfigurationError, as `read_rows` does."""
        begun, self._begun = self._begun, None
        return self._rows() if begun is None else begun

    def _rows(self) -> Iterator[Row]:
        self.repairs = []
        self._columns = {}
        several = len(self._files) > 1
        formats: dict[str, None] = {}
        encodings: dict[str, None] = {}
        self._bytes_before = texts = others = 0
        for path in self._files:
            shown = Path("stdin") if self._stdin else path
            reading = self._reading = FileReading(path, shown)
            name = _name_within(path, self.path) if several else self.name
            before = texts + others
            for number, values in reading.rows():
                if isinstance(values, str):
                    texts += 1
                else:
                    others += 1
                    if not self._columns.keys() >= values.keys():
                        self._columns.update(dict.fromkeys(values))
                if texts and others:
                    what = "a text" if isinstance(values, str) else "an object"
                    raise DataError(
                        f"{shown}, row {number}: {what}, where the rows before are not; make all rows alike"
                    )
                self.format, self.encoding = reading.format, reading.encoding
                yield Row(number, values, name if several else "")
            if texts + others == before:
                raise DataError(f"{shown} holds no rows; give a file with data in it")
            self._bytes_before, self._reading = self._bytes_before + path.stat().st_size, None
            formats[reading.format] = None
            encodings[reading.encoding] = None
            self.repairs.extend((FindingKind.REPAIR, what, name, row) for what, row in reading.all_notes())
        self.format, self.encoding = ", ".join(formats), ", ".join(encodings)

    def batches(self, size: int = 1000) -> Iterator[list[Row]]:
        """All rows, so many at a time."""
        rows = iter(self)
        while batch := list(itertools.islice(rows, size)):
            yield batch

    def sample(self, rows: int = _SAMPLE_ROWS) -> FileRows:
        """So many rows, any of the first 20,000 (and 16 million characters) equally likely, to find out what they are.

        The same ones each time (reservoir sampling, Vitter 1985, with a fixed seed), in the order of the file.
        """
        generator = random.Random("sample")
        kept: list[Row] = []
        places: list[int] = []
        size = 0
        for place, row in enumerate(self):
            if len(kept) < rows:
                kept.append(row)
                places.append(place)
            elif (chosen := generator.randrange(place + 1)) < rows:
                kept[chosen], places[chosen] = row, place
            size += row.size
            if place + 1 >= max(rows, _SAMPLED_FROM) or size > _SAMPLE_CHARACTERS:
                break
        kept = [row for _, row in sorted(zip(places, kept, strict=True), key=lambda pair: pair[0])]
        return self.describe(kept)


def open_rows(path: Path, *, name: str | None = None) -> RowStream:
    """The rows of a file, of all data files of a folder or pattern, or of standard input (`-`), for iterating.

    name: what to call the file in findings and in `Example.source`; its own name if not given.
    Raises DataError when there is no such file; faults in it come up while rows are read.
    """
    return RowStream(path, name or ("stdin" if str(path) == STDIN else path.name))


def read_rows(path: Path, *, name: str | None = None) -> FileRows:
    """All rows of what `open_rows` opens, in memory.

    Raises DataError, naming file and line, when it is missing, empty, binary, ragged or not valid in its format, and
    ConfigurationError when a library to read it is not installed.
    """
    stream = open_rows(path, name=name)
    try:
        rows = list(stream)
    finally:
        stream.close()
    return FileRows(path, stream.name, stream.format, stream.encoding, rows, stream.columns, tuple(stream.repairs))


def _name_within(path: Path, whole: Path) -> str:
    """A file's name as findings call it: from the folder on, where it lies in one."""
    return path.relative_to(whole).as_posix() if whole.is_dir() else path.name
