# SPDX-License-Identifier: Apache-2.0
"""A file of JSON lines that are read by their place: only the offsets are in memory, the lines stay on disk."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np

from open_autoglm.data.json_text import load_json
from open_autoglm.storage import explained

_WRITE_BYTES: Final = 1 << 20
_READ_LINES: Final = 1024
_READ_BYTES: Final = 4 << 20
_GAP_BYTES: Final = 1 << 14
_SCAN_BYTES: Final = 8 << 20
_LF: Final = ord("\n")
_encode_lines: Final = msgspec.json.Encoder().encode_lines
_encode: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


class LineFile:
    """JSON values, one per line, that are only ever added to.

    Half surrogate pairs, which JSON texts may hold, are kept. Raises StorageError when the disk refuses.
    """

    def __init__(self, file: IO[bytes], path: Path, offsets: array[int]) -> None:
        self._file = file
        self._path = path
        self._offsets = offsets
        self._pending: list[bytes] = []
        self._pending_bytes = 0

    @classmethod
    def temporary(cls, folder: Path | None) -> LineFile:
        """An empty file without a name, in a folder or the system's temporary one: it is gone when the process is."""
        place = folder or Path(tempfile.gettempdir())
        with explained(place, "write to"):
            place.mkdir(parents=True, exist_ok=True)
            return cls(tempfile.TemporaryFile(dir=place, prefix=".examples-"), place, array("q", [0]))

    @classmethod
    def existing(cls, path: Path) -> LineFile:
        """A file that was written before; its lines are counted now and read when they are asked for."""
        with explained(path, "read"):
            file = path.open("rb")
            offsets = array("q", [0])
            done = 0
            while data := file.read(_SCAN_BYTES):
                found = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _LF) + (done + 1)
                offsets.frombytes(found.astype(np.int64).tobytes())
                done += len(data)
            if offsets[-1] != done:
                offsets.append(done + 1)
        return cls(file, path, offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def add(self, value: Any) -> int:
        """Write a value behind the others; returns its place."""
        self._append(_encode(value).encode("utf-8", "surrogatepass") + b"\n")
        return len(self) - 1

    def add_texts(self, rows: Sequence[Sequence[str]]) -> int:
        """Write lists of texts behind the others, each on a line; returns the place of the first."""
        first = len(self)
        try:
            self._append(_encode_lines(rows))
        except (msgspec.MsgspecError, UnicodeError):  # halves of surrogate pairs
            for row in rows:
                self.add(row)
        return first

    def _append(self, lines: bytes) -> None:
        ends = np.flatnonzero(np.frombuffer(lines, dtype=np.uint8) == _LF) + (self._offsets[-1] + 1)
        self._offsets.frombytes(ends.astype(np.int64).tobytes())
        self._pending.append(lines)
        self._pending_bytes += len(lines)
        if self._pending_bytes > _WRITE_BYTES:
            self._flush()

    def read(self, places: np.ndarray) -> Iterator[Any]:
        """The values at some places, in the order of the places. places: int64[n]."""
        start = 0
        while start < len(places):
            chosen = places[start : start + _READ_LINES]
            offsets = np.frombuffer(self._offsets, dtype=np.int64)
            starts, ends = offsets[chosen], offsets[chosen + 1]
            del offsets  # an array that is looked into cannot grow
            enough = int(np.searchsorted(np.cumsum(ends - starts), _READ_BYTES, side="right"))
            enough = max(1, min(enough, len(chosen)))
            yield from load_json(b"[%b]" % b",".join(self._lines(starts[:enough], ends[:enough])))
            start += enough

    def _lines(self, starts: np.ndarray, ends: np.ndarray) -> list[bytes]:
        """The lines between some offsets; those that lie close together are read at once."""
        if self._pending:
            self._flush()
        order = np.argsort(starts, kind="stable")
        first, last = starts[order], ends[order]
        breaks = np.flatnonzero(first[1:] - last[:-1] > _GAP_BYTES) + 1
        lines: list[bytes] = [b""] * len(starts)
        with explained(self._path, "read"):
            for run in np.split(np.arange(len(order)), breaks):
                base = int(first[run[0]])
                data = os.pread(self._file.fileno(), int(last[run].max()) - base, base)
                for place, start, end in zip(
                    order[run].tolist(), (first[run] - base).tolist(), (last[run] - base).tolist(), strict=True
                ):
                    lines[place] = data[start : end - 1]
        return lines

    def _flush(self) -> None:
        with explained(self._path, "write to"):
            self._file.write(b"".join(self._pending))
            self._file.flush()
        self._pending, self._pending_bytes = [], 0
