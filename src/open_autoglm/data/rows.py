# SPDX-License-Identifier: Apache-2.0
"""A row of a file, and the rows of one that are in memory: what readers hand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from open_autoglm.data.findings import FindingKind

Repair = tuple[FindingKind, str, str, int | None]


class Row(NamedTuple):
    """One row.

    number: of the line where it starts, or its place in an array, from 1. values: by column, or a text. file: its
    name, where several files are read as one.
    """

    number: int
    values: dict[str, Any] | str
    file: str = ""

    @property
    def size(self) -> int:
        """Characters in it, roughly."""
        if isinstance(self.values, str):
            return len(self.values)
        return sum([len(value) if isinstance(value, str) else _size(value) for value in self.values.values()])


@dataclass(frozen=True)
class FileRows:
    """The rows of one file, or of several that are read as one.

    name: the file as findings call it. columns: in order of appearance, empty for texts. repairs: what was set right
    on the way, with the row, or None for the file as a whole.
    """

    path: Path
    name: str
    format: str
    encoding: str
    rows: Sequence[Row]
    columns: tuple[str, ...] = ()
    repairs: Sequence[Repair] = field(default=())

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else 8 if not isinstance(value, list | dict) else len(str(value))
