# SPDX-License-Identifier: Apache-2.0
"""Named targets from `profiles.yaml`, and targets that a user describes in a YAML file of the same form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean
from open_autoglm.targets.target import CPU, FORMATS, USABLE_FEATURES, Kind, Target
from open_autoglm.yaml_document import Place, YamlDocument, read_yaml

_KINDS: Final = ("cpu", "nvidia-gpu")
_ARCHITECTURES: Final = ("x86_64", "aarch64")
_REQUIRED: Final = ("processor", "cores", "memory_gib", "bandwidth_gb_per_s", "gops")
_OPTIONAL: Final = ("kind", "architecture", "instruction_sets", "cache_mib", "read_share", "sources")
_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_MOST: Final = 1e9
_LONGEST: Final = 400


def published_targets() -> Mapping[str, Target]:
    """The targets of `profiles.yaml` by name."""
    return _published()


def read_target(path: Path) -> Target:
    """A target that a user describes: a mapping with the fields of one target of `profiles.yaml`, and perhaps `name`.

    Raises ConfigurationError with file, line, column and field for what is missing, unknown or out of range.
    """
    document = read_yaml(path)
    values = document.value
    if not isinstance(values, dict):
        raise _fault(document, (), "a target is a mapping such as `cores: 4`")
    name = values.get("name", path.stem)
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST or not name.isprintable():
        raise _fault(document, ("name",), f"a name must be a short text, not {name!r:.80}")
    if name == CPU:
        raise _fault(document, ("name",), f"'{CPU}' is the name of this machine; choose another")
    return _target(document, (), name, {key: value for key, value in values.items() if key != "name"})


@cache
def _published() -> dict[str, Target]:
    document = read_yaml(Path(__file__).with_name("profiles.yaml"))
    return {name: _target(document, (name,), name, values) for name, values in document.value.items()}


def _target(document: YamlDocument, place: Place, name: str, values: object) -> Target:
    if not isinstance(values, dict):
        raise _fault(document, place, "a target is a mapping such as `cores: 4`")
    fields = cast("dict[str, Any]", values)
    for key in fields:
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise _fault(document, (*place, key), f"unknown field{did_you_mean(key, (*_REQUIRED, *_OPTIONAL))}")
    for key in _REQUIRED:
        if key not in fields:
            raise _fault(document, place, f"{key} is missing; see docs/targets.md for what a target has")

    def number(*keys: str, most: float = _MOST) -> float:
        value: Any = fields
        for key in keys:
            value = value[key]
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not 0 < value <= most:
            bound = "" if most == _MOST else f" and at most {most:g}"
            raise _fault(document, (*place, *keys), f"must be a number above zero{bound}, not {value!r:.80}")
        return float(value)

    def text(key: str, known: tuple[str, ...] = (), default: str = "") -> str:
        value = fields.get(key, default)
        if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
            raise _fault(document, (*place, key), f"must be a short text, not {value!r:.80}")
        if known and value and value not in known:
            raise _fault(document, (*place, key), f"unknown value '{value}'{did_you_mean(value, known)}")
        return value

    def texts(key: str) -> tuple[str, ...]:
        found = fields.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, str) for item in cast("list[object]", found)):
            raise _fault(document, (*place, key), "must be a list of texts")
        return tuple(cast("list[str]", found))

    cores = number("cores", most=65536)
    if cores != int(cores):
        raise _fault(document, (*place, "cores"), f"must be a whole number, not {cores:g}")
    rates = fields["gops"]
    if not isinstance(rates, dict):
        raise _fault(document, (*place, "gops"), "must be a mapping such as `int8: 392`")
    for key in cast("dict[str, Any]", rates):
        if key not in FORMATS:
            raise _fault(document, (*place, "gops", key), f"unknown format{did_you_mean(key, FORMATS)}")
    if "float32" not in rates:
        raise _fault(document, (*place, "gops"), "float32 is missing, in which attention is computed")
    sets = texts("instruction_sets")
    for index, item in enumerate(sets):
        if item not in USABLE_FEATURES:
            found = f"unknown instruction set '{item}'{did_you_mean(item, USABLE_FEATURES)}"
            raise _fault(document, (*place, "instruction_sets", index), found)
    share = number("read_share", most=1.0) if "read_share" in fields else 1.0
    return Target(
        name=name,
        processor=text("processor"),
        cores=int(cores),
        memory=int(number("memory_gib", most=1e6) * _GIB),
        features=sets,
        kind=cast("Kind", text("kind", _KINDS, "cpu")),
        architecture=text("architecture", _ARCHITECTURES, "x86_64"),
        bandwidth=number("bandwidth_gb_per_s") * share * 1e9,
        cache=int(number("cache_mib", most=1e6) * _MIB) if "cache_mib" in fields else None,
        rates={key: number("gops", key) * 1e9 for key in FORMATS if key in rates},
        sources=texts("sources"),
    )


def _fault(document: YamlDocument, place: Place, message: str) -> ConfigurationError:
    line, column = document.position(place)
    name = ".".join(str(part) for part in place)
    return ConfigurationError(f"{document.path}, line {line}, column {column}: {f'{name}: ' if name else ''}{message}")
