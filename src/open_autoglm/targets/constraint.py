# SPDX-License-Identifier: Apache-2.0
"""What a model must keep to on its target: bounds on time, memory and size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean

LIMITS: Final = ("latency_ms", "tokens_per_s", "memory_mb", "size_mb")
"""What a hardware constraint can bound, as `HardwareConstraint` explains."""


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
