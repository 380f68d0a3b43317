# SPDX-License-Identifier: Apache-2.0
"""How commands speak: tables for people, one JSON object on the last line of stdout for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)  # noqa: T201


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> None:
    """A table on stdout; colours only on a terminal. texts: columns from the left that are not numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table, markup=False)


def print_line(text: str) -> None:
    """A line of stdout, as it is."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
