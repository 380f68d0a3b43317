# SPDX-License-Identifier: Apache-2.0
"""Files of formats that plugins read: which they are, and their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from open_autoglm.data.files import format_by_name
from open_autoglm.errors import DataError, OpenAutoGLMError
from open_autoglm.plugins.registry import PluginRegistry


def reader_of(path: Path) -> str | None:
    """The plugin that reads files of this name; None for those that we read ourselves, or that nobody knows."""
    if not path.suffix or format_by_name(path) is not None:
        return None
    return PluginRegistry().reader_of(path.suffix)


def rows_of_reader(name: str, path: Path, shown: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows of a file. Raises DataError with what the plugin says is wrong, or when a row is none."""
    reader = PluginRegistry().make("reader", name)
    try:
        for number, row in enumerate(reader.read(path), start=1):
            if not isinstance(row, Mapping):
                raise DataError(f"{shown}, row {number}: the reader '{name}' gave a {type(row).__name__}, not a row")
            yield number, {str(key): value for key, value in row.items()}
    except OpenAutoGLMError:
        raise
    except Exception as error:
        raise DataError(f"{shown}: the reader '{name}' cannot read it: {type(error).__name__}: {error}") from error
