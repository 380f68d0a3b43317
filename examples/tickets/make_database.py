# SPDX-License-Identifier: Apache-2.0
"""Makes a SQLite database of tickets from the spoken commands of examples/snips: FILE [NUMBER]."""

from __future__ import annotations

import html
import itertools
import json
import sqlite3
import sys
from pathlib import Path

SNIPS = Path(__file__).parent.parent / "snips" / "train.jsonl"


def make_database(path: Path, number: int) -> None:
    """Write `number` tickets, each wrapped in some HTML as a web form would; those that are there stay."""
    with SNIPS.open(encoding="utf-8") as file:
        sentences = [json.loads(line)["prompt"] for line in file]
    tickets = (
        (index, f"<p>{html.escape(sentence)}</p><br>")
        for index, sentence in enumerate(itertools.islice(itertools.cycle(sentences), number), 1)
    )
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("create table if not exists tickets (id integer primary key, body text not null)")
        connection.executemany("insert or ignore into tickets values (?, ?)", tickets)
    connection.close()


if __name__ == "__main__":
    make_database(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
