# SPDX-License-Identifier: Apache-2.0
"""Every change to the examples between reading and training, kept so that all of them can be undone."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.data.example import Example
from open_autoglm.data.example_store import IN_MEMORY, ExampleStore, StoredExamples
from open_autoglm.errors import StorageError
from open_autoglm.storage import explained, replacing

CHANGES_FILE: Final = "changes.jsonl"
_PRIVATE_MODE: Final = 0o600
_ORDER_LINE: Final = 10_000
_NOTHING: Final = -1
_encode: Final = json.JSONEncoder().encode


class ChangeLog:
    """What became of each example that was read: three bytes an example, and its number in the store.

    Start with `read`, then tell of each step that edits (`edited`) or removes (`removed`); `finish` with the splits.
    """

    def __init__(self) -> None:
        self._files: dict[str, StoredExamples] = {}
        self._reasons: list[str] = []
        self._edits = np.zeros(0, dtype=np.uint16)
        self._gone = np.zeros(0, dtype=np.uint8)

    def read(self, split: str, examples: StoredExamples) -> None:
        """The examples of a file, before anything is done to them. Their origins follow those of the file before."""
        self._files[split] = examples
        room = np.zeros(len(examples), dtype=np.uint8)
        self._edits, self._gone = np.concatenate([self._edits, room]), np.concatenate([self._gone, room])

    def edited(self, before: StoredExamples, after: StoredExamples, what: str) -> None:
        """`after` are the examples of `before`, in the same order, some of them changed."""
        changed = before.records != after.records
        self._edits[before.origins[changed]] |= np.uint16(1 << self._reason(what))

    def removed(self, before: StoredExamples, after: StoredExamples, what: str) -> None:
        """`after` are the examples of `before` less those removed."""
        if len(before) == len(after):
            return
        stays = np.zeros(len(self._gone), dtype=np.bool_)
        stays[after.origins] = True
        left = before.origins[~stays[before.origins]]
        self._gone[left] = self._reason(what) + 1

    def finish(self, splits: Mapping[str, StoredExamples]) -> Changes:
        """All of it, with the splits that came out at the end."""
        return Changes(dict(self._files), dict(splits), tuple(self._reasons), self._edits, self._gone)

    def _reason(self, what: str) -> int:
        if what not in self._reasons:
            self._reasons.append(what)
        return self._reasons.index(what)


class Changes:
    """JSON-ready lines, made while they are gone through.

    First where the examples of each split stood, then each removal and each edit with what was before.
    """

    def __init__(
        self,
        files: Mapping[str, StoredExamples],
        splits: Mapping[str, StoredExamples],
        reasons: Sequence[str],
        edits: np.ndarray,
        gone: np.ndarray,
    ) -> None:
        self._files, self._splits, self._reasons, self._edits, self._gone = files, splits, reasons, edits, gone
        sizes = [len(examples) for examples in files.values()]
        self._firsts = dict(zip(files, np.cumsum([0, *sizes]).tolist(), strict=False))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._order()
        yield from self._removals()
        yield from self._edited()

    def _order(self) -> Iterator[dict[str, Any]]:
        for split, examples in self._splits.items():
            for start in range(0, len(examples), _ORDER_LINE):
                places = self._by_file(examples.origins[start : start + _ORDER_LINE])
                yield {"change": "order", "split": split, "places": places}

    def _by_file(self, origins: np.ndarray) -> list[list[Any]]:
        """Where examples stood, in their order: each file's name once for each run of examples out of it."""
        names, firsts = list(self._firsts), np.array(list(self._firsts.values()), dtype=np.int64)
        files = np.searchsorted(firsts, origins, side="right") - 1
        breaks = np.flatnonzero(files[1:] != files[:-1]) + 1
        runs = zip(np.split(files, breaks), np.split(origins - firsts[files], breaks), strict=True)
        return [[names[int(file[0])], places.tolist()] for file, places in runs]

    def _removals(self) -> Iterator[dict[str, Any]]:
        for file in sorted(self._files):
            examples = self._files[file]
            gone = examples.take(np.flatnonzero(self._gone[examples.origins]))
            for origin, example in zip(gone.origins.tolist(), gone, strict=True):
                what = self._reasons[int(self._gone[origin]) - 1]
                yield {
                    "change": "removed",
                    "what": what,
                    "file": file,
                    "place": origin - self._firsts[file],
                    "example": example.to_dict(),
                }

    def _edited(self) -> Iterator[dict[str, Any]]:
        for examples in self._splits.values():
            for file, first in self._firsts.items():
                source = self._files[file]
                here = examples.take((examples.origins >= first) & (examples.origins < first + len(source)))
                before = source.take(here.origins - first)
                changed = before.take(before.records != here.records)
                for origin, example in zip(changed.origins.tolist(), changed, strict=True):
                    reasons = [what for bit, what in enumerate(self._reasons) if self._edits[origin] >> bit & 1]
                    yield {
                        "change": "edited",
                        "what": reasons,
                        "file": file,
                        "place": origin - first,
                        "example": example.to_dict(),
                    }


def save_changes(lines: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `changes.jsonl`, for its owner alone: it holds what was masked. Raises StorageError."""
    path = folder / CHANGES_FILE
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(f"{_encode(line)}\n" for line in lines)
    with explained(path, "write"):
        path.chmod(_PRIVATE_MODE)


def undo_changes(
    splits: Mapping[str, Sequence[Example]],
    folder: Path,
    *,
    scratch: Path | None = None,
    in_memory: int = IN_MEMORY,
) -> dict[str, StoredExamples]:
    """The examples as they were read, by the file they were in, in its order.

    splits: the prepared ones. folder: where `changes.jsonl` is. scratch, in_memory: the folder for a temporary file,
    and how many bytes the examples may take before they go there, as of `prepare`.
    Raises StorageError when it is missing or belongs to other data.
    """
    path = folder / CHANGES_FILE
    store = ExampleStore(scratch, in_memory=in_memory)
    found: dict[str, _Places] = {}
    left: dict[str, Iterator[Example]] = {split: iter(examples) for split, examples in splits.items()}
    try:
        with explained(path, "read"), path.open(encoding="utf-8") as file:
            most = path.stat().st_size  # every place is written down
            for line in map(json.loads, file):
                if line["change"] == "order":
                    examples = left[line["split"]]
                    for name, places in line["places"]:
                        rows = found.setdefault(name, _Places(most))
                        for place in places:
                            rows.put(place, store.add(next(examples), keys=False))
                    continue
                rows, place = found.setdefault(line["file"], _Places(most)), int(line["place"])
                if rows.has(place) != (line["change"] == "edited"):
                    raise ValueError(f"row {place} of {line['file']} is not there")
                rows.put(place, store.add(Example.from_dict(line["example"]), keys=False))
        if any(next(examples, None) is not None for examples in left.values()):
            raise ValueError("there are more examples than it tells of")
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise StorageError(
            f"{path} does not belong to these examples ({type(error).__name__}: {error}); prepare the data again"
        ) from None
    records = {name: rows.records() for name, rows in found.items()}
    return {name: StoredExamples(store, numbers, np.arange(len(numbers))) for name, numbers in records.items()}


class _Places:
    """Which record of a store stands at each place of a file: eight bytes a place.

    most: no place is as large.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._records = array("q")

    def has(self, place: int) -> bool:
        """Whether there is anything at a place."""
        return 0 <= place < len(self._records) and self._records[place] != _NOTHING

    def put(self, place: int, record: int) -> None:
        """What stands there now. Raises ValueError for a place that cannot be."""
        if not 0 <= place < self._most:
            raise ValueError(f"there is no row {place}")
        if place >= len(self._records):
            self._records.extend([_NOTHING] * (place + 1 - len(self._records)))
        self._records[place] = record

    def records(self) -> np.ndarray:
        """int64[n], in the order of the places."""
        numbers = np.array(self._records, dtype=np.int64)
        return numbers[numbers != _NOTHING]
