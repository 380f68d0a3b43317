# SPDX-License-Identifier: Apache-2.0
"""Hardware profiles: what a device has. `cpu` is this machine, measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean

KNOWN_TARGETS: Final = ("cpu",)
LIMITS: Final = ("latency_ms", "tokens_per_s", "memory_mb", "size_mb")
"""What a hardware constraint can bound, as `HardwareConstraint` explains."""

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CGROUP_SHARE: Final = Path("/sys/fs/cgroup/cpu.max")
_INTERESTING: Final = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
)


@dataclass(frozen=True)
class Target:
    """A device to build for.

    cores: those that this process may use. memory: bytes, the control group's limit respected.
    features: instruction sets that the engines care about.
    """

    name: str
    processor: str
    cores: int
    memory: int
    features: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class HardwareConstraint:
    """What a model must keep to on its target; None for no bound.

    latency_ms: at most, for one answer of the data's usual length, alone. tokens_per_s: at least, of that answer.
    memory_mb: at most, the weights in int8 and the cache of one whole context, in 10^6 bytes. size_mb: at most, the
    file of the int8 weights.
    Raises ConfigurationError for a bound that is not above zero.
    """

    latency_ms: float | None = None
    tokens_per_s: float | None = None
    memory_mb: float | None = None
    size_mb: float | None = None

    def __post_init__(self) -> None:
        for name in LIMITS:
            value = getattr(self, name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf")
            ):
                raise ConfigurationError(f"hardware_constraint: {name} must be a number above zero, not {value!r}")

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in LIMITS)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> HardwareConstraint:
        """The constraint of a mapping such as `{"latency_ms": 20}`. Raises ConfigurationError for an unknown name."""
        for name in values:
            if name not in LIMITS:
                raise ConfigurationError(f"hardware_constraint: unknown limit '{name}'{did_you_mean(name, LIMITS)}")
        return cls(**values)

    def to_dict(self) -> dict[str, float]:
        """The bounds that there are; `of` reads them back."""
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    def violations(self, found: Mapping[str, float]) -> dict[str, float]:
        """By how much of itself each bound is missed: above zero where it is. found: a value for each of `LIMITS`."""
        missed: dict[str, float] = {}
        for name, bound in self.to_dict().items():
            value = found[name]
            missed[name] = (bound - value) / bound if name == "tokens_per_s" else (value - bound) / bound
        return missed


def resolve_target(name: str = "cpu") -> Target:
    """The profile called `name`. Raises ConfigurationError for a name that is not known yet."""
    if name not in KNOWN_TARGETS:
        raise ConfigurationError(f"unknown target '{name}'; known: {', '.join(KNOWN_TARGETS)} (this machine)")
    features = cpu_features()
    return Target(
        name, _processor_name(), usable_cores(), memory_bytes(), tuple(f for f in _INTERESTING if f in features)
    )


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


def _processor_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
