# SPDX-License-Identifier: Apache-2.0
"""Drift: no false alarm, each change told once, and the figures those of NumPy."""

import itertools
import math
import random

import numpy as np
import pytest

from open_autoglm.serve.watching.drift import Drift


def test_numbers_of_one_distribution_never_drift() -> None:
    for seed in range(4):
        random.seed(seed)
        lengths, scores = Drift(floor=0.5), Drift(floor=0.01)
        for _ in range(10_000):
            assert not lengths.add(float(min(60, int(random.expovariate(0.1)))))
            assert not scores.add(-random.gammavariate(2.0, 0.3))
        assert not lengths.has_drifted
        assert lengths.stability_index is not None
        assert 0 <= lengths.stability_index < 0.2


def test_a_change_is_told_once_until_it_has_gone() -> None:
    random.seed(5)
    drift = Drift()

    def told(count: int, mean: float) -> int:
        return sum(drift.add(random.gauss(mean, 1.0)) for _ in range(count))

    assert told(3_000, 0.0) == 0
    assert told(1_000, 1.5) == 1
    assert drift.has_drifted
    assert drift.shift is not None
    assert drift.shift > 5
    assert told(5_000, 0.0) == 0
    assert not drift.has_drifted
    assert told(1_000, -1.5) == 1


def test_the_spread_may_change_while_the_mean_stays() -> None:
    random.seed(6)
    drift = Drift(reference=400, window=400)
    for _ in range(400):
        drift.add(random.gauss(0.0, 1.0))
    assert sum(drift.add(random.gauss(0.0, 4.0)) for _ in range(2_000)) == 1
    assert drift.shift is not None
    assert abs(drift.shift) < 20


def test_the_figures_are_those_of_numpy() -> None:
    generator = np.random.default_rng(7)
    first, later = generator.normal(5, 2, 300), generator.normal(6, 2, 700)
    drift = Drift(reference=300, window=100)
    for value in (*first, *later):
        drift.add(float(value))
    newest = 2 / 101
    weights = newest * (1 - newest) ** np.arange(len(later))[::-1]
    old = (1 - newest) ** len(later)
    mean = old * first.mean() + (weights * later).sum()
    assert drift.mean == pytest.approx(mean)
    assert drift.reference_mean == pytest.approx(first.mean())
    error = first.std(ddof=1) * math.sqrt(newest / (2 - newest) + 1 / 300)
    assert drift.shift == pytest.approx((mean - first.mean()) / error)
    ordered = np.sort(first)
    edges = [-np.inf, np.nextafter(ordered[0], -np.inf), *ordered[np.arange(1, 10) * 30], ordered[-1], np.inf]
    inside = [(low, high) for low, high in itertools.pairwise(edges)]
    expected = np.array([((first > low) & (first <= high)).mean() for low, high in inside])
    recent = np.array([(weights * ((later > low) & (later <= high))).sum() for low, high in inside]) + old * expected
    before, now = ((share + 0.5 / 300) / (1 + 6 / 300) for share in (expected, recent))
    assert len(expected) == 12
    assert drift.stability_index == pytest.approx(((now - before) * np.log(now / before)).sum())


def test_equal_numbers_and_what_is_no_number() -> None:
    drift = Drift(reference=50, window=50, floor=0.5)
    assert drift.mean is drift.shift is drift.stability_index is drift.reference_mean is None
    for value in [3.0] * 100 + [math.nan, math.inf]:
        assert not drift.add(value)
    assert drift.num_values == 100
    assert drift.mean == drift.reference_mean == 3.0
    assert drift.shift == drift.stability_index == pytest.approx(0, abs=1e-9)
    assert sum(drift.add(2.0) for _ in range(100)) == 1
    assert sum(drift.add(3.0) for _ in range(300)) == 0
    assert sum(drift.add(4.0) for _ in range(100)) == 1
