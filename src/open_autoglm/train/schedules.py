# SPDX-License-Identifier: Apache-2.0
"""The learning rate of each step; without PyTorch."""

from __future__ import annotations

import math
from typing import Final

SCHEDULES: Final = ("constant_cosine", "cosine", "linear", "wsd")
_FLOOR: Final = 0.02
_WSD_DECAY_SHARE: Final = 0.2


def learning_rate_at(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    decay_from: int | None,
    total_steps: int,
    schedule: str = "constant_cosine",
) -> float:
    """The learning rate of a step: linear warm-up, then constant until `decay_from`, then falling to the end.

    decay_from: None for a run whose end is not known yet, such as a search trial: the rate stays at its peak; 0 for one
    that decays from the end of its warm-up.
    schedule: `constant_cosine` falls by half a cosine to 2% of the peak, `cosine` to zero; `linear` falls in a line to
    zero; `wsd` stays at the peak until the last fifth of the run and falls to zero by 1 - sqrt.
    Source: Loshchilov and Hutter 2017 (cosine), Hu et al. 2024 (MiniCPM: the constant phase), Bergsma et al. 2025
    (linear to zero), Hägele et al. 2024 (1 - sqrt).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay_from is None:
        return peak
    begin = max(decay_from, warmup_steps)
    if schedule == "wsd":
        begin = max(begin, math.floor((1 - _WSD_DECAY_SHARE) * total_steps))
    if step < begin:
        return peak
    share = min(1.0, (step - begin) / max(1, total_steps - begin))
    if schedule == "linear":
        return peak * (1 - share)
    if schedule == "wsd":
        return peak * (1 - math.sqrt(share))
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    floor = _FLOOR if schedule == "constant_cosine" else 0.0
    return peak * (floor + (1 - floor) * cosine)
