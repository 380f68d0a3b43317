# SPDX-License-Identifier: Apache-2.0
"""What a change of a model costs on the same examples, with the interval that resampling them gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
_AT_ONCE: Final = 4_000_000


@dataclass(frozen=True)
class ExampleScores:
    """One model's scores, example by example.

    values: float64[n], sums over each example: of its metric, or of its negative log-probabilities in nats.
    counts: float64[n], of what is summed: 1, or the tokens. is_nats: the metric is exp(sum of values / sum of counts).
    """

    values: np.ndarray
    counts: np.ndarray
    is_nats: bool = False

    @property
    def metric(self) -> float:
        """Over all examples."""
        return float(self._combined(self.values.sum(), self.counts.sum()))

    def over(self, chosen: np.ndarray) -> np.ndarray:
        """float64[m]: the metric of resamples. chosen: int64[m, k], the examples of each."""
        return self._combined(self.values[chosen].sum(axis=1), self.counts[chosen].sum(axis=1))

    def _combined(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        mean = values / np.maximum(counts, 1e-12)
        return np.exp(np.minimum(mean, 700.0)) if self.is_nats else mean


@dataclass(frozen=True)
class Loss:
    """How much worse the second model is, in the metric's unit: below 0 it is better.

    low, high: what it is at least and at most, each with the probability `CONFIDENCE`.
    """

    value: float
    low: float
    high: float


def paired_loss(
    before: ExampleScores, after: ExampleScores, *, higher_is_better: bool, seed: int = 0, resamples: int = RESAMPLES
) -> Loss:
    """The loss from one model to the other on the same examples, and its one-sided bounds.

    Source: Efron and Tibshirani 1993, percentile bootstrap over pairs.
    Raises ValueError when the examples are not the same number, or none.
    """
    count = len(before.values)
    if count != len(after.values) or not count:
        raise ValueError(f"{count} scores before and {len(after.values)} after")
    sign = 1.0 if higher_is_better else -1.0
    generator = np.random.default_rng(seed)
    losses: list[np.ndarray] = []
    step = max(1, _AT_ONCE // count)
    for start in range(0, resamples, step):
        chosen = generator.integers(0, count, (min(step, resamples - start), count))
        losses.append(sign * (before.over(chosen) - after.over(chosen)))
    low, high = np.quantile(np.concatenate(losses), [1 - CONFIDENCE, CONFIDENCE])
    value = sign * (before.metric - after.metric)
    return Loss(value, min(float(low), value), max(float(high), value))


def relative(amount: float, metric: float) -> float:
    """An amount as a share of a metric; infinite where the metric is 0 and the amount is not."""
    if metric:
        return amount / abs(metric)
    return math.inf if amount > 0 else 0.0
