# SPDX-License-Identifier: Apache-2.0
"""A file -> its examples in the store, in one spelling, in one pass: the rows themselves are let go of at once."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.chat.messages import Role
from open_autoglm.data.cleaning import private_kinds
from open_autoglm.data.example import Example, PlainExample, unpack_plain
from open_autoglm.data.example_store import ExampleStore, StoredExamples
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.data.layouts import Layout
from open_autoglm.data.normalisation import normalise_example
from open_autoglm.data.plain_rows import PlainRowReader
from open_autoglm.data.privacy_screen import places_worth_a_look
from open_autoglm.data.readers import RowStream, open_rows
from open_autoglm.data.rows import FileRows, Row
from open_autoglm.data.shapes import RowReader
from open_autoglm.data.time_order import TimeCollector, TimeColumn
from open_autoglm.errors import DataError

_SAMPLE: Final = 4000
_SAMPLE_CHARACTERS: Final = 32 << 20
_TOGETHER: Final = 1000
_TOGETHER_CHARACTERS: Final = 1 << 20
_USER: Final = Role.USER.value
_ASSISTANT: Final = Role.ASSISTANT.value


@dataclass(frozen=True)
class ReadFile:
    """What was read of a file.

    file: what it is, with a sample of its rows. rows: how many it has (lines, of plain text). first: the origin of the
    first example. raw: the examples as they were read. spelled: the same in one spelling. examples: those of them that
    have an answer. private: uint8, by the place in `raw`, see `cleaning.private_kinds`. times: by that place, too.
    repairs: what was set right on the way to examples; changes: what was changed in them.
    """

    file: FileRows
    rows: int
    layout: Layout
    first: int
    raw: StoredExamples
    spelled: StoredExamples
    examples: StoredExamples
    private: np.ndarray
    times: TimeColumn | None
    repairs: FindingLog
    changes: FindingLog


def read_file(
    path: Path,
    store: ExampleStore,
    find: Callable[[FileRows], Layout],
    *,
    name: str | None = None,
    first: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> ReadFile:
    """Read a file into the store.

    find: how the file is laid out, from a sample of its rows (`layouts.find_layout`). name: what findings call it.
    first: the origin of the first example, see `StoredExamples`. on_progress: called now and then with the share that
    is done.
    The layout is found in the first 20,000 rows; should a sample of all rows say otherwise, the file is read again.
    Raises DataError and ConfigurationError as `readers.read_rows`, `find` and `shapes.read_examples`.
    """
    stream = open_rows(path, name=name)
    try:
        head = stream.head()
        try:
            layout = find(head)
        except DataError:
            # What is at the beginning says too little, or it is sorted by its labels: all of it may say more.
            if (sample := _sample(stream)) is None:
                raise
            layout = find(sample)
        in_head = len(head.rows)
        del head  # memory for the rest
        while True:
            found = _Pass(stream, store, layout, on_progress).read(first)
            if found.rows_seen <= in_head:
                break
            better = find(found.read.file)
            if better == layout:
                break
            layout = better
        return found.read
    finally:
        stream.close()


@dataclass(frozen=True)
class _Found:
    read: ReadFile
    rows_seen: int


class _Pass:
    """One way through a file."""

    def __init__(
        self, stream: RowStream, store: ExampleStore, layout: Layout, on_progress: Callable[[float], None] | None
    ) -> None:
        self._stream, self._store, self._layout, self._on_progress = stream, store, layout, on_progress
        self._sample = RowSample()
        self._times = TimeCollector(layout.columns)
        self._lines = 0
        self._repairs, self._changes = FindingLog(), FindingLog()
        self._waiting: list[Example | PlainExample] = []
        # By the place of each example: its records as read and as spelled, its row, and what is private in it.
        self._raw, self._spelled, self._rows = array("q"), array("q"), array("q")
        self._private = bytearray()
        self._kept = array("q")

    def read(self, first: int) -> _Found:
        stream, layout = self._stream, self._layout
        plain_reader = PlainRowReader.of(layout)
        reader = RowReader(stream, layout, self._repairs)
        size = 0
        for row in stream:
            self._look_at(row)
            pair = plain_reader.read(row.values) if plain_reader is not None else None
            if pair is not None:
                question, answer = pair
                self._waiting.append((f"{row.file or stream.name}:{row.number}", _USER, question, _ASSISTANT, answer))
                self._rows.append(self._sample.seen - 1)
                size += len(question) + len(answer)
            else:
                for example in reader.read(row):
                    self._waiting.append(example)
                    self._rows.append(self._sample.seen - 1)
                    size += sum([len(message.content) for message in example.messages])
                    if size > _TOGETHER_CHARACTERS:
                        size = self._take_in()
            if size > _TOGETHER_CHARACTERS or len(self._waiting) >= _TOGETHER:
                size = self._take_in()
        self._take_in()
        return _Found(self._read_file(first), self._sample.seen)

    def _look_at(self, row: Row) -> None:
        self._sample.add(row)
        values: Any = row.values
        self._times.add(values)
        if isinstance(values, str):
            self._lines += values.rstrip("\n").count("\n") + 1

    def _take_in(self) -> int:
        """Put the examples that are waiting into the store; none are left."""
        waiting, self._waiting = self._waiting, []
        plain = [example for example in waiting if not isinstance(example, Example)]
        record = self._store.add_plain(plain)
        texts = ["\n".join(example[2::2]) for example in plain]
        private = bytearray(len(plain))
        for place in places_worth_a_look(texts):
            private[place] = private_kinds(unpack_plain(plain[place]))
        if len(plain) == len(waiting):
            numbers = range(record, record + len(plain))
            self._kept.extend(range(len(self._raw), len(self._raw) + len(plain)))
            self._raw.extend(numbers)
            self._spelled.extend(numbers)
            self._private += private
        else:
            place = 0
            for example in waiting:
                if isinstance(example, Example):
                    self._take_in_one(example)
                    continue
                self._kept.append(len(self._raw))
                self._raw.append(record + place)
                self._spelled.append(record + place)
                self._private.append(private[place])
                place += 1
        if self._on_progress is not None and waiting:
            self._on_progress(self._stream.share_read)
        return 0

    def _take_in_one(self, example: Example) -> None:
        """An example that may have something to set right."""
        clean = normalise_example(example, self._changes)
        record = self._store.add(example, keys=clean is example)
        if _says_something(clean, self._changes):
            self._kept.append(len(self._raw))
        self._raw.append(record)
        self._spelled.append(record if clean is example else self._store.add(clean))
        self._private.append(private_kinds(clean))

    def _read_file(self, first: int) -> ReadFile:
        stream, store = self._stream, self._store
        notes = FindingLog()
        notes.extend(stream.repairs)
        notes.merge(self._repairs)
        origins = np.arange(first, first + len(self._raw))
        before, after = np.array(self._raw, dtype=np.int64), np.array(self._spelled, dtype=np.int64)
        places = np.array(self._kept, dtype=np.int64)
        times = self._times.found(stream.columns)
        if times is not None:
            times = TimeColumn(times.column, times.times[np.array(self._rows, dtype=np.int64)])
        file = stream.describe(self._sample.rows)
        return ReadFile(
            file=file,
            rows=self._lines if file.format == "text" else self._sample.seen,
            layout=self._layout,
            first=first,
            raw=StoredExamples(store, before, origins),
            spelled=StoredExamples(store, after, origins),
            examples=StoredExamples(store, after[places], origins[places]),
            private=np.frombuffer(bytes(self._private), dtype=np.uint8),
            times=times,
            repairs=notes,
            changes=self._changes,
        )


class RowSample:
    """Some thousand rows at even distances, however many come: every first, second, fourth, ... one.

    At least 4,000, or all, unless they are so long that these have more than 32 million characters.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.rows: list[Row] = []
        self._step = 1
        self._size = 0

    def add(self, row: Row) -> None:
        """The next row."""
        if self.seen % self._step == 0:
            self.rows.append(row)
            self._size += row.size
            while len(self.rows) >= 2 * _SAMPLE or (self._size > _SAMPLE_CHARACTERS and len(self.rows) > 1):
                self.rows = self.rows[::2]
                self._size = sum(row.size for row in self.rows)
                self._step *= 2
        self.seen += 1


def _sample(stream: RowStream) -> FileRows | None:
    """A sample of all rows; None if the first rows were all."""
    head = stream.head()
    sample = RowSample()
    for row in stream:
        sample.add(row)
    return stream.describe(sample.rows) if sample.seen > len(head.rows) else None


def _says_something(example: Example, log: FindingLog) -> bool:
    """Whether there is an answer to learn."""
    answer = example.messages[-1]
    if answer.content.strip() or answer.calls:
        return True
    log.note_source(FindingKind.DROP, "empty answer", example.source)
    return False
