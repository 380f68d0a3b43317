# SPDX-License-Identifier: Apache-2.0
"""Examples in memory while they are few, and in a temporary file when they are many, behind one kind of sequence."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, overload

import numpy as np

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data.example import Example, PlainExample, pack_plain, unpack_plain
from open_autoglm.data.keys import DIGEST, Keys, example_digests, plain_digests
from open_autoglm.data.line_file import LineFile
from open_autoglm.errors import StorageError

IN_MEMORY: Final = 128 << 20
"""Bytes that the examples of one data set may take, roughly, before they move to disk."""

_EXAMPLE_BYTES: Final = 600
_BLOCK: Final = 4096
_NO_KEYS: Final = bytes(3 * DIGEST)


class ExampleStore:
    """All versions of the examples of a data set, numbered as they come. They are never changed or removed.

    folder: where the temporary file goes; the system's temporary folder if None. in_memory: how many bytes, roughly,
    may stay in memory. Per example 73 bytes stay there at any rate: its digests, lengths and place.
    """

    def __init__(self, folder: Path | None = None, *, in_memory: int = IN_MEMORY) -> None:
        self._folder = folder
        self._most = in_memory
        self._size = 0
        self._entries: list[Example | PlainExample] = []
        self._lines: LineFile | None = None
        self._keys = bytearray()
        self._input_lengths = array("q")
        self._answer_lengths = array("q")
        self.holds_reasoning = False
        """Whether any of the examples does."""
        self.on_read: Callable[[int], None] | None = None
        """Called with how many examples are read next, some thousand at a time."""

    @property
    def is_on_disk(self) -> bool:
        """Whether the examples were too many to stay in memory."""
        return self._lines is not None

    def __len__(self) -> int:
        return len(self._answer_lengths)

    def add(self, example: Example, *, keys: bool = True) -> int:
        """Keep an example; returns its number. keys: whether its digests will be asked for."""
        plain = pack_plain(example)
        if plain is not None:
            return self.add_plain((plain,), keys=keys)
        *before, last = map(_length, example.messages)
        self._keys += example_digests(example) if keys else _NO_KEYS
        self._input_lengths.append(sum(before))
        self._answer_lengths.append(last)
        self.holds_reasoning = self.holds_reasoning or any(message.reasoning for message in example.messages)
        if self._lines is not None:
            return self._lines.add(example.to_dict())
        self._entries.append(example)
        self._grow(sum(before) + last + _EXAMPLE_BYTES)
        return len(self) - 1

    def add_plain(self, examples: Sequence[PlainExample], *, keys: bool = True) -> int:
        """Keep some examples; returns the number of the first, which the others follow."""
        first = len(self)
        answers = [len(example[-1]) for example in examples]
        inputs = [sum(map(len, example[2:-2:2])) for example in examples]
        self._keys += b"".join(map(plain_digests, examples)) if keys else _NO_KEYS * len(examples)
        self._input_lengths.extend(inputs)
        self._answer_lengths.extend(answers)
        if self._lines is not None:
            self._lines.add_texts(examples)
            return first
        self._entries.extend(examples)
        self._grow(sum(inputs) + sum(answers) + _EXAMPLE_BYTES * len(examples))
        return first

    def add_all(self, entries: Sequence[Example | PlainExample], *, keys: bool = True) -> np.ndarray:
        """Keep some examples; returns their numbers: int64[n]."""
        plain = [entry for entry in entries if not isinstance(entry, Example)]
        if len(plain) == len(entries):
            return np.arange(len(entries)) + self.add_plain(plain, keys=keys)
        numbers = [
            self.add(e, keys=keys) if isinstance(e, Example) else self.add_plain((e,), keys=keys) for e in entries
        ]
        return np.array(numbers, dtype=np.int64)

    def read(self, records: np.ndarray) -> Iterator[Example]:
        """The examples with some numbers, in that order. records: int64[n]."""
        return map(_unpacked, self.entries(records))

    def entries(self, records: np.ndarray) -> Iterator[Example | PlainExample]:
        """The same as they are kept. records: int64[n]."""
        for start in range(0, len(records), _BLOCK):
            part = records[start : start + _BLOCK]
            if self.on_read is not None:
                self.on_read(len(part))
            if self._lines is not None:
                yield from map(_from_line, self._lines.read(part))
            else:
                yield from map(self._entries.__getitem__, part.tolist())

    def keys(self, records: np.ndarray) -> Keys:
        """The digests of some examples, which were added with them. records: int64[n]."""
        return Keys.from_bytes(self._keys, records)

    def input_lengths(self, records: np.ndarray) -> np.ndarray:
        """int64[n], characters of all that comes before the answer."""
        return np.frombuffer(self._input_lengths, dtype=np.int64)[records]

    def answer_lengths(self, records: np.ndarray) -> np.ndarray:
        """int64[n], characters of the answer."""
        return np.frombuffer(self._answer_lengths, dtype=np.int64)[records]

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size <= self._most:
            return
        lines = self._lines = LineFile.temporary(self._folder)
        for start in range(0, len(self._entries), _BLOCK):
            part = self._entries[start : start + _BLOCK]
            plain = [entry for entry in part if not isinstance(entry, Example)]
            if len(plain) == len(part):
                lines.add_texts(plain)
                continue
            for entry in part:
                lines.add(entry.to_dict() if isinstance(entry, Example) else entry)
        self._entries = []


def _length(message: Message) -> int:
    """Characters of what a turn says, its calls included."""
    return len(message.readable if message.tool_calls or message.metadata else message.content)


def _unpacked(entry: Example | PlainExample) -> Example:
    return entry if isinstance(entry, Example) else unpack_plain(entry)


def _from_line(line: Any) -> Example | PlainExample:
    return line if isinstance(line, list) else Example.from_dict(line)


def pairs_of(examples: Iterable[Example]) -> Iterator[tuple[str, str]]:
    """The input and the answer of each example (`Example.input_text`, `Example.answer`)."""
    if not isinstance(examples, StoredExamples):
        return ((example.input_text, example.answer) for example in examples)
    return map(_pair_of, examples.entries())


def _pair_of(entry: Example | PlainExample) -> tuple[str, str]:
    if isinstance(entry, Example):
        return entry.input_text, entry.answer
    for place in range(len(entry) - 4, 0, -2):
        if entry[place] == Role.USER:
            return entry[place + 1], entry[-1]
    return "", entry[-1]


class StoredExamples(Sequence[Example]):  # noqa: PLW1641 - it may be large, and is no key
    """Examples of a store: a view that costs 16 bytes an example.

    records: int64[n], their numbers in the store. origins: int64[n], which of the examples as they were read each is
    or was made from.
    """

    def __init__(self, store: ExampleStore, records: np.ndarray, origins: np.ndarray) -> None:
        self.store = store
        self.records = np.asarray(records, dtype=np.int64)
        self.origins = np.asarray(origins, dtype=np.int64)

    @classmethod
    def of(cls, examples: Sequence[Example]) -> StoredExamples:
        """A view of any examples; those of a store stay where they are."""
        if isinstance(examples, StoredExamples):
            return examples
        store = ExampleStore()
        records = np.fromiter(map(store.add, examples), np.int64, len(examples))
        return cls(store, records, np.arange(len(examples)))

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> StoredExamples: ...
    def __getitem__(self, index: int | slice) -> Example | StoredExamples:
        if isinstance(index, slice):
            return StoredExamples(self.store, self.records[index], self.origins[index])
        place = range(len(self.records))[index]
        return next(self.store.read(self.records[place : place + 1]))

    def __iter__(self) -> Iterator[Example]:
        return self.store.read(self.records)

    def __eq__(self, other: object) -> bool:
        return _same_examples(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} examples)"

    def take(self, places: np.ndarray) -> StoredExamples:
        """Some of the examples. places: int64[k], or bool[n]."""
        return StoredExamples(self.store, self.records[places], self.origins[places])

    def entries(self) -> Iterator[Example | PlainExample]:
        """All of them as the store keeps them."""
        return self.store.entries(self.records)

    def mapped(
        self, change: Callable[[Example], Example], places: np.ndarray | None = None, *, keys: bool = True
    ) -> StoredExamples:
        """The examples with `change` made to each, or to those at some places; it gives back itself where nothing is.

        keys: whether the digests of what was changed will be asked for.
        """
        chosen = np.arange(len(self)) if places is None else places

        def changes() -> Iterator[tuple[int, Example]]:
            for place, example in zip(_integers(chosen), self.store.read(self.records[chosen]), strict=True):
                changed = change(example)
                if changed is not example:
                    yield place, changed

        return self._with(changes(), keys=keys)

    def mapped_answers(self, change: Callable[[str], str]) -> StoredExamples:
        """The examples with `change` made to each answer. The digests of what was changed are not kept."""

        def changes() -> Iterator[tuple[int, Example | PlainExample]]:
            for place, entry in enumerate(self.entries()):
                before = entry.answer if isinstance(entry, Example) else entry[-1]
                after = change(before)
                if after == before:
                    continue
                if isinstance(entry, Example):
                    yield place, replace(entry, messages=(*entry.prompt, replace(entry.messages[-1], content=after)))
                else:
                    yield place, (*entry[:-1], after)

        return self._with(changes(), keys=False)

    def _with(self, changes: Iterator[tuple[int, Example | PlainExample]], *, keys: bool) -> StoredExamples:
        """The examples with others at some places."""
        records = self.records.copy()
        while part := list(itertools.islice(changes, _BLOCK)):
            places, entries = zip(*part, strict=True)
            records[list(places)] = self.store.add_all(entries, keys=keys)
        return StoredExamples(self.store, records, self.origins)

    @property
    def keys(self) -> Keys:
        """The digests of all of them."""
        return self.store.keys(self.records)

    @property
    def input_lengths(self) -> np.ndarray:
        """int64[n], characters of all that comes before each answer."""
        return self.store.input_lengths(self.records)

    @property
    def answer_lengths(self) -> np.ndarray:
        """int64[n], characters of each answer."""
        return self.store.answer_lengths(self.records)


class SavedExamples(Sequence[Example]):  # noqa: PLW1641 - it may be large, and is no key
    """The examples of a JSON Lines file of `Example.to_dict`, which are read as they are asked for.

    Reading one raises StorageError if the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = LineFile.existing(path)
        self._places = np.arange(len(self._lines))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self._read(self._places[index]))
        place = range(len(self._places))[index]
        return next(self._read(self._places[place : place + 1]))

    def __iter__(self) -> Iterator[Example]:
        return self._read(self._places)

    def __eq__(self, other: object) -> bool:
        return _same_examples(self, other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path}, {len(self)} examples)"

    def _read(self, places: np.ndarray) -> Iterator[Example]:
        try:
            yield from map(Example.from_dict, self._lines.read(places))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(
                f"{self._path} does not hold prepared data ({type(error).__name__}: {error}); prepare the data again"
            ) from None


def _integers(numbers: np.ndarray) -> Iterator[int]:
    """The numbers of an array one by one, without a list of all of them."""
    for start in range(0, len(numbers), _BLOCK):
        yield from numbers[start : start + _BLOCK].tolist()


def _same_examples(one: Sequence[Example], other: object) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, str | bytes) or len(one) != len(other):
        return False
    return all(first == second for first, second in zip(one, other, strict=True))
