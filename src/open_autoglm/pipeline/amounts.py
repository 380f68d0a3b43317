# SPDX-License-Identifier: Apache-2.0
"""Times and sizes as people write them in a pipeline's file: `60s`, `1h30m`, `2GB`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_TIME_PATTERN: Final = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"
_SIZE_PATTERN: Final = r"^\d+(\.\d+)? ?(B|KB|MB|GB|KiB|MiB|GiB)?$"


def seconds_of(value: Any) -> float:
    """`90`, `"60s"`, `"1h30m"`, `"250ms"` -> seconds. Raises ValueError that says how to write it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = value.strip() if isinstance(value, str) else ""
        if not re.match(_TIME_PATTERN, text):
            raise ValueError(f"{value!r} is not a time; write it like 60s, 5m or 1h30m")
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds <= 366 * 86400:
        raise ValueError(f"{value!r} must be more than zero and at most 366 days")
    return seconds


def bytes_of(value: Any) -> int:
    """`1000000`, `"2GB"`, `"512 MiB"` -> bytes. Raises ValueError that says how to write it."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    text = value.strip() if isinstance(value, str) else ""
    found = re.match(_SIZE_PATTERN, text)
    if not found:
        raise ValueError(f"{value!r} is not a size; write it like 512MB, 2GB or 2GiB")
    unit = found.group(2) or ""
    size = int(float(text[: len(text) - len(unit)]) * _BYTES[unit])
    if size <= 0:
        raise ValueError(f"{value!r} must be more than zero")
    return size


Duration = Annotated[
    float,
    BeforeValidator(seconds_of),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": _TIME_PATTERN}]}
    ),
]
"""Seconds."""

Size = Annotated[
    int,
    BeforeValidator(bytes_of),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": _SIZE_PATTERN}]}),
]
"""Bytes."""
