# SPDX-License-Identifier: Apache-2.0
"""How much of their shingles pairs of texts share, exactly; the shingles of texts that come again are kept a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

_KEPT: Final = 4 << 20
_TOP: Final = np.uint64(32)


class SharedShingles:
    """Compares texts by their sets of shingles, of which at most some millions are kept in memory.

    shingles: of the texts at some places the shingles, uint32[total], end to end, and how many each has, int64[n].
    """

    def __init__(self, shingles: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
        self._shingles = shingles
        self._forget()

    def shares(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """float64[n], the Jaccard index of pairs of texts: shingles in both / shingles in either.

        one, other: int64[n], the places of the texts.
        """
        self._keep(np.unique(np.concatenate([one, other])))
        first, second = self._slots_of(one), self._slots_of(other)
        sizes = self._sizes[first] + self._sizes[second]
        # What both texts of a pair have comes twice, side by side when all is sorted.
        members = np.concatenate([self._numbered(first), self._numbered(second)])
        members.sort()
        twice = members[1:][members[1:] == members[:-1]]
        common = np.bincount((twice >> _TOP).astype(np.int64), minlength=len(one))
        return common / (sizes - common)

    def _keep(self, places: np.ndarray) -> None:
        new = np.array([place for place in places.tolist() if place not in self._slots], dtype=np.int64)
        if not len(new):
            return
        if len(self._members) > _KEPT:
            self._forget()
            new = places
        hashes, counts = self._shingles(new)
        owners = np.repeat(np.arange(len(new), dtype=np.uint64), counts)
        members = distinct(owners << _TOP | hashes)
        sizes = np.bincount((members >> _TOP).astype(np.int64), minlength=len(new))
        starts = np.cumsum(sizes) - sizes + len(self._members)
        self._slots.update(zip(new.tolist(), range(len(self._sizes), len(self._sizes) + len(new)), strict=True))
        self._members = np.concatenate([self._members, members.astype(np.uint32)])
        self._starts = np.concatenate([self._starts, starts])
        self._sizes = np.concatenate([self._sizes, sizes])

    def _forget(self) -> None:
        self._slots: dict[int, int] = {}
        self._members = np.zeros(0, dtype=np.uint32)
        self._starts = np.zeros(0, dtype=np.int64)
        self._sizes = np.zeros(0, dtype=np.int64)

    def _slots_of(self, places: np.ndarray) -> np.ndarray:
        return np.fromiter(map(self._slots.__getitem__, places.tolist()), np.int64, len(places))

    def _numbered(self, slots: np.ndarray) -> np.ndarray:
        """The shingles of some texts, the number of the text above each: uint64[total]."""
        sizes = self._sizes[slots]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found = self._members[np.repeat(self._starts[slots], sizes) + within]
        return np.repeat(np.arange(len(slots), dtype=np.uint64) << _TOP, sizes) | found


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The different ones, sorted; for such numbers as these faster than `np.unique`, which puts them into a table."""
    numbers.sort()
    return numbers[np.concatenate([[True], numbers[1:] != numbers[:-1]])]
