# SPDX-License-Identifier: Apache-2.0
"""This machine as a target with its limits measured: how fast it reads memory, and multiplies in each format."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from open_autoglm.targets import Target, resolve_target

_BUFFER: Final = 256 << 20
_SECONDS: Final = 0.1
_ROUNDS: Final = 2


def measure_this_machine(threads: int | None = None) -> Target:
    """The `cpu` target with bandwidth and rates, measured for about a second; without them where the compiled
    engine is missing.

    The best of two rounds counts, since other programs only take away. threads: all usable cores if not given.
    """
    target = resolve_target()
    try:
        from open_autoglm.engine import _native
    except ImportError:
        return target
    count = threads or target.cores
    bandwidth, rates = 0.0, dict[str, float]()
    for _ in range(_ROUNDS):
        bandwidth = max(bandwidth, _native.measure_read_bandwidth(count, _BUFFER, _SECONDS) * 1e9)
        for name, measure in (
            ("float32", _native.measure_float32_rate),
            ("bfloat16", _native.measure_bfloat16_rate),
            ("int8", _native.measure_int8_rate),
            ("int4", _native.measure_int4_rate),
        ):
            rates[name] = max(rates.get(name, 0.0), measure(count, _SECONDS) * 1e9)
    return replace(
        target,
        cores=count,
        bandwidth=bandwidth,
        rates=rates,
        sources=("measured just now by the loops of csrc/machine_limits.cpp; other programs lower it",),
    )
