# SPDX-License-Identifier: Apache-2.0
"""Hardware profiles: what a device has and how fast it is at most, by name, from a file, or read from this machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean
from open_autoglm.targets.constraint import LIMITS, HardwareConstraint
from open_autoglm.targets.target import CPU, FORMATS, USABLE_FEATURES, Target
from open_autoglm.targets.this_machine import (
    cpu_features,
    last_level_cache,
    memory_bytes,
    processor_name,
    usable_cores,
)

__all__ = [
    "CPU",
    "FORMATS",
    "KNOWN_TARGETS",
    "LIMITS",
    "HardwareConstraint",
    "Target",
    "cpu_features",
    "last_level_cache",
    "memory_bytes",
    "resolve_target",
    "usable_cores",
]

KNOWN_TARGETS: Final = (
    CPU,
    "raspberry-pi-4",
    "raspberry-pi-5",
    "laptop",
    "jetson-orin",
    "jetson-orin-nano",
    "rtx-4090",
    "a100",
    "h100",
)
"""This machine, then the targets of `profiles.yaml`, which is read when one of them is asked for."""

_FILE_ENDINGS: Final = (".yaml", ".yml")


def resolve_target(name: str | Path = CPU) -> Target:
    """The target called `name`, or the one that the YAML file of that path describes.

    `cpu` is this machine, as the system describes it; how fast it is is not measured here.
    Raises ConfigurationError for an unknown name, and for a file with the place of its fault.
    """
    if name == CPU:
        return _this_machine()
    from open_autoglm.targets.profiles import published_targets, read_target

    text = str(name)
    if text in KNOWN_TARGETS:
        return published_targets()[text]
    if isinstance(name, Path) or text.lower().endswith(_FILE_ENDINGS) or "/" in text:
        return read_target(Path(text))
    meant = did_you_mean(text, KNOWN_TARGETS)
    raise ConfigurationError(
        f"unknown target '{text[:100]}'{meant}" + ("" if "known are" in meant else " (a YAML file's path is taken too)")
    )


def _this_machine() -> Target:
    features = cpu_features()
    return Target(
        CPU,
        processor_name(),
        usable_cores(),
        memory_bytes(),
        tuple(name for name in USABLE_FEATURES if name in features),
        architecture=platform.machine(),
        cache=last_level_cache(),
    )
