# SPDX-License-Identifier: Apache-2.0
"""`Drift`: whether numbers still come from where the first ones came from."""

from __future__ import annotations

import bisect
import math
from typing import Final

REFERENCE: Final = 500
"""Numbers that later ones are compared with."""
WINDOW: Final = 500
"""About how many of the newest numbers are compared; those before are forgotten little by little."""

_BINS: Final = 10
_EVERY: Final = 10
"""So many numbers after each other are judged once."""
_DRIFTED: Final = 0.25
_BACK: Final = 0.1


class Drift:
    """The first numbers are the reference, to which an exponentially weighted mean and histogram of the later is held.

    reference, window: how many numbers. floor: the least standard deviation that is believed, so that numbers which
    were all equal do not make every other one a wonder.

    Sources: Roberts 1959 (the EWMA chart); Lewis 1994 (the population stability index, of which 0.25 is taken for a
    change and 0.1 for none). With 500 and 500 numbers of one distribution the index is about 0.04, and 0.25 is beyond
    what chance does.
    """

    def __init__(self, *, reference: int = REFERENCE, window: int = WINDOW, floor: float = 0.0) -> None:
        self._size, self._newest, self._floor = reference, 2.0 / (window + 1), floor
        self._settled = window // 2
        self._first: list[float] = []
        self._edges: list[float] = []
        self._expected: list[float] = []
        self._recent: list[float] = []
        self._reference_mean = self._deviation = 0.0
        self._mean: float | None = None
        self._num_after = 0
        self.num_values = 0
        self.has_drifted = False

    @property
    def mean(self) -> float | None:
        """Of the newest numbers; nothing before there was one."""
        return self._mean

    @property
    def reference_mean(self) -> float | None:
        """Of the reference; nothing before it is complete."""
        return self._reference_mean if self._edges else None

    @property
    def shift(self) -> float | None:
        """How far the mean has moved, in standard errors of what chance would move it; nothing without a reference."""
        if not self._edges or self._mean is None:
            return None
        variance = self._newest / (2.0 - self._newest) + 1.0 / self._size
        return (self._mean - self._reference_mean) / (self._deviation * math.sqrt(variance))

    @property
    def stability_index(self) -> float | None:
        """The population stability index between reference and newest numbers, 0 or more; nothing without a reference.

        Each bin is taken to hold half a number more than it does, so that an empty one does not make it infinite.
        """
        if not self._edges:
            return None
        spare = 0.5 / self._size
        total = 1.0 + spare * len(self._expected)
        index = 0.0
        for expected, recent in zip(self._expected, self._recent, strict=True):
            before, now = (expected + spare) / total, (recent + spare) / total
            index += (now - before) * math.log(now / before)
        return index

    def add(self, value: float) -> bool:
        """Take a number. Returns true once when the numbers have drifted, and again only after they came back."""
        if not math.isfinite(value):
            return False
        self.num_values += 1
        if not self._edges:
            self._first.append(value)
            before = self._mean or 0.0
            self._mean = before + (value - before) / len(self._first)
            if len(self._first) == self._size:
                self._settle()
            return False
        before = self._reference_mean if self._mean is None else self._mean
        self._mean = before + self._newest * (value - before)
        place = bisect.bisect_left(self._edges, value)
        self._recent = [share * (1.0 - self._newest) for share in self._recent]
        self._recent[place] += self._newest
        self._num_after += 1
        return self._num_after >= self._settled and self._num_after % _EVERY == 0 and self._judge()

    def _settle(self) -> None:
        """The reference is complete: ten bins that hold about as many numbers each, and one beyond either end."""
        values = sorted(self._first)
        quantiles = [values[len(values) * place // _BINS] for place in range(1, _BINS)]
        below = math.nextafter(values[0], -math.inf)
        self._edges = sorted({below, *quantiles, values[-1]})
        counts = [0] * (len(self._edges) + 1)
        for value in values:
            counts[bisect.bisect_left(self._edges, value)] += 1
        self._expected = [count / len(values) for count in counts]
        self._recent = list(self._expected)
        self._reference_mean = math.fsum(values) / len(values)
        squares = math.fsum((value - self._reference_mean) ** 2 for value in values)
        self._deviation = max(self._floor, math.sqrt(squares / max(1, len(values) - 1)), 1e-12)
        self._first = []

    def _judge(self) -> bool:
        index = self.stability_index or 0.0
        if self.has_drifted:
            self.has_drifted = index > _BACK
            return False
        self.has_drifted = index > _DRIFTED
        return self.has_drifted
