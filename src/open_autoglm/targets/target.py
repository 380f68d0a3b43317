# SPDX-License-Identifier: Apache-2.0
"""A device to build for or to serve on: what it has, and how fast it can be at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Kind = Literal["cpu", "nvidia-gpu"]

CPU: Final = "cpu"
"""The name of the target that is this machine."""

FORMATS: Final = ("float32", "bfloat16", "int8", "int4")
"""Formats of weights, the widest first: those that a target has a rate for, and those that a plan chooses among."""

USABLE_FEATURES: Final = (
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
"""Instruction sets that the engines care about, as Linux names them."""


@dataclass(frozen=True)
class Target:
    """A device to build for.

    cores: those that a process may use. memory: bytes that programs share; of a GPU its own. features: instruction sets
    that the engines care about. kind: what computes. architecture: of the processor, as `platform.machine` names it.
    bandwidth: bytes per second that reading memory gives with all cores; None where nobody knows. cache: bytes of the
    cache that all cores share. rates: operations per second, by format of the weights, a multiply-add being two.
    sources: where the figures are from, a sentence each.
    """

    name: str
    processor: str
    cores: int
    memory: int
    features: tuple[str, ...]
    kind: Kind = "cpu"
    architecture: str = ""
    bandwidth: float | None = None
    cache: int | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    @property
    def is_this_machine(self) -> bool:
        """Whether it is the machine that runs this."""
        return self.name == CPU

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is not known is left out."""
        values: dict[str, Any] = {
            "name": self.name,
            "processor": self.processor,
            "cores": self.cores,
            "memory": self.memory,
            "features": list(self.features),
        }
        if self.kind != "cpu":
            values["kind"] = self.kind
        for name in ("architecture", "bandwidth", "cache"):
            if getattr(self, name):
                values[name] = getattr(self, name)
        if self.rates:
            values["rates"] = dict(self.rates)
        if self.sources:
            values["sources"] = list(self.sources)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Target:
        """The inverse of `to_dict`."""
        lists = {name: tuple(values.get(name, ())) for name in ("features", "sources")}
        return cls(**{**values, **lists})
