# SPDX-License-Identifier: Apache-2.0
"""What this machine has, read from the system; nothing is timed here."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CGROUP_SHARE: Final = Path("/sys/fs/cgroup/cpu.max")
_CACHE_SIZE: Final = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def usable_cores() -> int:
    """How many processors this process may run on, its affinity and the control group's share respected."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_SHARE.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


def memory_bytes() -> int:
    """The memory of the machine, or of the control group when that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(_CGROUP_LIMIT.read_text())
    except (OSError, ValueError):
        return total
    return min(total, limit)


def last_level_cache() -> int | None:
    """Bytes of the cache that all cores share, where the system tells."""
    try:
        text = _CACHE_SIZE.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS and text[:-1].isdigit() else None


def cpu_features() -> frozenset[str]:
    """The processor's instruction sets, as Linux names them; empty where that cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
