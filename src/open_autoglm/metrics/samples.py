# SPDX-License-Identifier: Apache-2.0
"""What each example adds to a metric, so that it can be taken over all examples and over any resample of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

LEVEL: Final = 0.95
"""The share of intervals that hold the true value."""

RESAMPLES: Final = 1000
_WEIGHTS_AT_ONCE: Final = 4_000_000


class Resampled(Protocol):
    """A metric over a set of examples."""

    @property
    def value(self) -> float:
        """Over all examples."""
        ...

    @property
    def count(self) -> int:
        """How many examples there are."""
        ...

    @property
    def resamples(self) -> int:
        """How many resamples an interval takes at most."""
        ...

    def over(self, weights: np.ndarray) -> np.ndarray:
        """float64[m], the metric where example i counts `weights[j, i]` times. weights: int64[m, n]."""
        ...


@dataclass(frozen=True)
class Samples:
    """A metric that is a function of sums over examples.

    sums: float64[n, k], what each example adds. combine: float64[..., k] -> float64[...], from sums to values.
    """

    sums: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]
    resamples: int = RESAMPLES

    @property
    def value(self) -> float:
        """Over all examples."""
        return float(self.combine(self.sums.sum(axis=0)))

    @property
    def count(self) -> int:
        """How many examples there are."""
        return len(self.sums)

    def over(self, weights: np.ndarray) -> np.ndarray:
        """float64[m], the metric of each row of weights."""
        return self.combine(weights.astype(np.float64) @ self.sums)


@dataclass(frozen=True)
class WholeFunction:
    """A metric that is known as a function of all answers and references only."""

    function: Callable[[Sequence[str], Sequence[str]], float]
    answers: Sequence[str]
    references: Sequence[str]
    resamples: int = 200

    @property
    def value(self) -> float:
        """Over all examples."""
        return float(self.function(self.answers, self.references))

    @property
    def count(self) -> int:
        """How many examples there are."""
        return len(self.references)

    def over(self, weights: np.ndarray) -> np.ndarray:
        """float64[m], the metric of each row of weights."""
        found: list[float] = []
        for row in weights:
            places = np.repeat(np.arange(len(row)), row)
            some, wanted = ([texts[int(place)] for place in places] for texts in (self.answers, self.references))
            found.append(float(self.function(some, wanted)))
        return np.array(found)


def mean(values: Sequence[float] | Sequence[bool] | np.ndarray) -> Samples:
    """The mean of a number for each example."""
    column = np.asarray(values, dtype=np.float64)
    return Samples(np.stack([column, np.ones_like(column)], axis=1), ratio)


def share(rows: Sequence[tuple[float, float]]) -> Samples:
    """Sum of the first by sum of the second; 1 where there is nothing to count."""
    return Samples(np.asarray(rows, dtype=np.float64).reshape(-1, 2), lambda sums: ratio(sums, nothing=1.0))


def overlap(rows: Sequence[tuple[float, float, float]]) -> Samples:
    """Micro F1 of rows of hits, found and wanted; 0 where there is neither."""
    sums = np.asarray(rows, dtype=np.float64).reshape(-1, 3)
    return Samples(sums, lambda s: ratio(np.stack([2 * s[..., 0], s[..., 1] + s[..., 2]], axis=-1)))


def ratio(sums: np.ndarray, nothing: float = 0.0) -> np.ndarray:
    """sums[..., 0] / sums[..., 1], and `nothing` where the latter is zero."""
    found = sums[..., 1] > 0
    return np.where(found, sums[..., 0] / np.where(found, sums[..., 1], 1.0), nothing)


def confidence_interval(
    metric: Resampled, *, level: float = LEVEL, resamples: int | None = None, seed: int = 0
) -> tuple[float, float]:
    """The interval that holds the metric of `level` of all resamples of the examples, with replacement.

    resamples: how many; at most as many as the metric asks for if not given. Deterministic given the seed.
    Raises ValueError when there are no examples.
    Source: Efron 1979, percentile bootstrap.
    """
    count = metric.count
    if count < 1:
        raise ValueError("there is no interval without examples")
    generator = np.random.default_rng(seed)
    left = resamples or metric.resamples
    at_once = max(1, _WEIGHTS_AT_ONCE // count)
    found: list[np.ndarray] = []
    while left > 0:
        rows = min(left, at_once)
        drawn = generator.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        found.append(metric.over(weights))
        left -= rows
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
