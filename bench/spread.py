# SPDX-License-Identifier: Apache-2.0
"""The middle and the ends of what several rounds measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """`median`, `least` and `most`, rounded to so many digits."""
    return {
        "median": round(statistics.median(values), digits),
        "least": round(min(values), digits),
        "most": round(max(values), digits),
    }
