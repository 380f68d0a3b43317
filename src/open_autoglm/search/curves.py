# SPDX-License-Identifier: Apache-2.0
"""Learning curves carried on beyond what was seen: a power law that falls to a floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_EXPONENTS: Final = np.geomspace(0.05, 2.0, 40)
_LEAST_POINTS: Final = 4


@dataclass(frozen=True)
class PowerLaw:
    """floor + scale x amount^-exponent."""

    floor: float
    scale: float
    exponent: float

    def at(self, amount: float) -> float:
        """The loss after so much training."""
        return self.floor + self.scale * amount**-self.exponent


def fit_power_law(curve: Sequence[tuple[float, float]]) -> PowerLaw | None:
    """The power law of least squared error through amounts of training (of any unit, above zero) and losses.

    Its floor and scale are not negative. Later points weigh more, since what a model does in its first steps says
    little of its end. None where there are fewer than four points, or the losses do not fall.
    Source of the form: Domhan et al. 2015; Hoffmann et al. 2022.
    """
    points = [(x, y) for x, y in curve if x > 0 and np.isfinite(y)]
    if len(points) < _LEAST_POINTS or len({x for x, _ in points}) < _LEAST_POINTS:
        return None
    xs, ys = np.array(points).T
    unit = float(xs[-1])
    weights = np.sqrt(np.arange(1, len(xs) + 1) / len(xs))
    best: tuple[float, PowerLaw] | None = None
    for exponent in _EXPONENTS:
        basis = (xs / unit) ** -exponent
        floor, scale = _two_not_negative(basis * weights, ys * weights, weights)
        error = float(np.sum((weights * (floor + scale * basis - ys)) ** 2))
        if scale > 0 and (best is None or error < best[0]):
            best = error, PowerLaw(floor, scale * unit**exponent, float(exponent))
    return None if best is None else best[1]


def extrapolate(curve: Sequence[tuple[float, float]], amount: float) -> float:
    """The loss after `amount` of training by the power law of a curve, or its last loss where there is no such law.

    Raises ValueError for an empty curve.
    """
    if not curve:
        raise ValueError("an empty curve cannot be carried on")
    last = curve[-1][1]
    law = fit_power_law(curve)
    return last if law is None or amount <= curve[-1][0] else min(last, law.at(amount))


def _two_not_negative(basis: np.ndarray, target: np.ndarray, ones: np.ndarray) -> tuple[float, float]:
    """Least squares of floor x ones + scale x basis, neither below zero."""
    matrix = np.stack([ones, basis], axis=1)
    (floor, scale), *_ = np.linalg.lstsq(matrix, target, rcond=None)
    if floor >= 0 and scale >= 0:
        return float(floor), float(scale)
    alone_scale = max(0.0, float(basis @ target / (basis @ basis)))
    alone_floor = max(0.0, float(ones @ target / (ones @ ones)))
    error_scale = float(np.sum((alone_scale * basis - target) ** 2))
    error_floor = float(np.sum((alone_floor * ones - target) ** 2))
    return (0.0, alone_scale) if error_scale <= error_floor else (alone_floor, 0.0)
