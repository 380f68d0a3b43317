# SPDX-License-Identifier: Apache-2.0
"""Learning curves carried on: exact on power laws, careful elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.search.curves import extrapolate, fit_power_law


@given(st.floats(0.0, 5.0), st.floats(0.5, 50.0), st.floats(0.1, 1.5))
def test_a_power_law_is_found_again(floor: float, scale: float, exponent: float) -> None:
    curve = [(x, floor + scale * x**-exponent) for x in np.linspace(1, 9, 9)]
    expected = floor + scale * 90**-exponent
    assert extrapolate(curve, 90.0) == pytest.approx(expected, abs=0.05 * scale + 0.02 * floor)


def test_noise_does_not_carry_it_away() -> None:
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(50):
        curve = [(x, (2 + 30 * x**-0.6) * (1 + 0.02 * generator.normal())) for x in np.linspace(1e9, 9e9, 9) / 1e9]
        errors.append(abs(extrapolate(curve, 60.0) / (2 + 30 * 60**-0.6) - 1))
    assert np.median(errors) < 0.25


def test_the_unit_does_not_matter() -> None:
    curve = [(x, 2 + 30 * x**-0.6) for x in range(1, 10)]
    scaled = [(x * 1e12, y) for x, y in curve]
    assert extrapolate(scaled, 6e13) == pytest.approx(extrapolate(curve, 60.0))


def test_where_there_is_no_law_the_last_loss_stands() -> None:
    assert fit_power_law([(1, 3.0), (2, 2.0), (3, 1.5)]) is None
    assert extrapolate([(1, 3.0), (2, 2.0)], 100) == 2.0
    rising = [(x, float(x)) for x in range(1, 10)]
    assert extrapolate(rising, 100) == 9.0
    falling = [(x, 10.0 / x) for x in range(1, 10)]
    assert extrapolate(falling, 5) == falling[-1][1]
    with pytest.raises(ValueError, match="empty"):
        extrapolate([], 1)
