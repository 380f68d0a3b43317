# SPDX-License-Identifier: Apache-2.0
"""MinHash signatures of texts, and the bands of them by which texts that are alike meet."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import numpy as np

from open_autoglm.storage import explained

_BANDS: Final = 20
_ROWS: Final = 4
SIGNATURE: Final = _BANDS * _ROWS
"""How many numbers a signature has."""

_IN_MEMORY: Final = 200_000
_SPAN: Final = 125_000
_BASE: Final = np.uint64(0x9E3779B97F4A7C15)
_KEY: Final = 8
_FIRST_BITS: Final = 20
_REST_BITS: Final = np.uint64(64 - _FIRST_BITS)


def sign(hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The signatures of some texts: uint32[n, bands x rows], the least of each text's shingles under as many orders.

    hashes: uint32[total], the shingles of all texts end to end. counts: int64[n], how many each has, at least one.
    """
    generator = np.random.default_rng(0x61757467)
    flips, factors = generator.integers(0, 2**32, (2, SIGNATURE), dtype=np.uint32)
    factors |= np.uint32(1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    made = np.empty((len(counts), SIGNATURE), dtype=np.uint32)
    start = 0
    while start < len(counts):
        # So few at a time that they stay in the processor's cache.
        end = int(np.searchsorted(starts, starts[start] + _SPAN, side="right")) - 1
        end = min(len(counts), max(start + 1, end))
        part = hashes[starts[start] : starts[end]]
        firsts = starts[start:end] - starts[start]
        scratch = np.empty_like(part)
        for column, (flip, factor) in enumerate(zip(flips, factors, strict=True)):
            np.bitwise_xor(part, flip, out=scratch)
            np.multiply(scratch, factor, out=scratch)
            made[start:end, column] = np.minimum.reduceat(scratch, firsts)
        start = end
    return made


class BandKeys:
    """For each band a key of each text's signature there; of many texts in a temporary file, a band after the other.

    folder: for the file; the system's temporary folder if None.
    """

    numbers = range(_BANDS)

    def __init__(self, count: int, folder: Path | None) -> None:
        self._count = count
        self._folder = folder or Path(tempfile.gettempdir())
        self._keys = np.empty((_BANDS, count if count <= _IN_MEMORY else 0), dtype=np.uint64)
        self._file = None
        if count > _IN_MEMORY:
            with explained(self._folder, "write to"):
                self._file = tempfile.TemporaryFile(dir=self._folder, prefix=".bands-")  # noqa: SIM115

    def close(self) -> None:
        """Remove the temporary file."""
        if self._file is not None:
            self._file.close()

    def write(self, start: int, signatures: np.ndarray) -> None:
        """Keep the keys of some texts, the first of which is number `start`. Several threads may do so at once."""
        words = signatures.view(np.uint64).reshape(len(signatures), -1)
        keys = np.ascontiguousarray((words[:, 0::2] * _BASE ^ words[:, 1::2]).T)
        if self._file is None:
            self._keys[:, start : start + len(signatures)] = keys
            return
        with explained(self._folder, "write to"):
            for band in self.numbers:
                os.pwrite(self._file.fileno(), keys[band].tobytes(), (band * self._count + start) * _KEY)

    def repeated(self, band: int, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The texts whose key others have too, side by side with those, and their keys.

        Among texts with one key, those come side by side that agree in the next band as well.
        chosen: int64[k], the texts to look at. Returns int64[m] and uint64[m].
        """
        keys = self._read(band)[chosen]
        ordered = np.sort(keys)
        repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        if not len(repeated):
            return np.zeros(0, dtype=np.int64), repeated
        # A table of their first bits rules most of the others out at once.
        begins = np.zeros(1 << _FIRST_BITS, dtype=np.bool_)
        begins[repeated >> _REST_BITS] = True
        members = np.flatnonzero(begins[keys >> _REST_BITS])
        perhaps = keys[members]
        members = members[repeated[np.minimum(np.searchsorted(repeated, perhaps), len(repeated) - 1)] == perhaps]
        keys = keys[members]
        members = chosen[members]
        order = np.lexsort((self._read((band + 1) % _BANDS)[members], keys))
        return members[order], keys[order]

    def _read(self, band: int) -> np.ndarray:
        if self._file is None:
            return self._keys[band]
        with explained(self._folder, "read"):
            data = bytearray()
            while len(data) < self._count * _KEY:
                part = os.pread(
                    self._file.fileno(), self._count * _KEY - len(data), band * self._count * _KEY + len(data)
                )
                if not part:
                    raise OSError("the temporary file was cut off")
                data += part
            return np.frombuffer(data, dtype=np.uint64)
