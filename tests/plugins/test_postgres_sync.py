# SPDX-License-Identifier: Apache-2.0
"""The example of a sync plugin against Debian's PostgreSQL: no change missed, none twice, deletes too."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from sqlalchemy import Connection, create_engine, text

from open_autoglm.plugins.discovery import plugin_in
from open_autoglm.plugins.loading import DirectLoader
from tests.e2e.conftest import run_here
from tests.pipeline.postgres_for_tests import postgres

EXAMPLE = Path(__file__).parents[2] / "examples" / "postgres_sync"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


def connect(url: str) -> Connection:
    return create_engine(url.replace("postgresql://", "postgresql+pg8000://")).connect()


def test_a_table_is_followed_through_overlapping_transactions(server: str) -> None:
    with connect(server) as setup, setup.begin():
        setup.execute(text("CREATE TABLE notes (key int PRIMARY KEY, body text, price numeric, made timestamptz)"))
        setup.execute(text("INSERT INTO notes VALUES (1, 'one', 1.50, '2026-01-01T00:00:00Z'), (2, 'two', null, null)"))
    source: Any = DirectLoader().load(plugin_in(EXAMPLE / "plugins" / "postgres_changes"))()
    source.connect({"url": server, "table": "notes", "id": "key"})
    source.prepare()
    source.prepare()
    cursor: Any = None

    def changed() -> list[dict[str, Any]]:
        nonlocal cursor
        records, cursor = source.fetch(cursor)
        return json.loads(json.dumps(list(source.preprocess(records))))

    assert changed() == [
        {"key": "1", "body": "one", "price": "1.50", "made": "2026-01-01T00:00:00+00:00", "deleted": False},
        {"key": "2", "body": "two", "price": None, "made": None, "deleted": False},
    ]
    assert changed() == []
    with connect(server) as slow, connect(server) as quick:
        open_one = slow.begin()
        slow.execute(text("INSERT INTO notes VALUES (3, 'begun first', 0, null)"))
        with quick.begin():
            quick.execute(text("INSERT INTO notes VALUES (4, 'committed first', 0, null)"))
        assert changed() == [], "what is not below the oldest transaction waits for it"
        open_one.commit()
        assert [row["body"] for row in changed()] == ["begun first", "committed first"]
        with quick.begin():
            quick.execute(text("UPDATE notes SET body = 'two again' WHERE key = 2"))
            quick.execute(text("DELETE FROM notes WHERE key = 1"))
            quick.execute(text("UPDATE notes SET key = 5 WHERE key = 4"))
        rolled_back = slow.begin()
        slow.execute(text("DELETE FROM notes"))
        rolled_back.rollback()
    found = {row["key"]: row.get("body") if not row["deleted"] else None for row in changed()}
    assert found == {"1": None, "2": "two again", "4": None, "5": "committed first"}
    assert changed() == []
    with pytest.raises(ValueError, match="cannot name a table"):
        source.connect({"url": server, "table": "notes; DROP TABLE notes"})


def test_the_example_keeps_a_copy(server: str, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "sync")
    folder = tmp_path / "sync"
    environment = {
        "TICKETS_URL": server,
        "OPEN_AUTOGLM_CONFIG": str(tmp_path / "config"),
        "OPEN_AUTOGLM_CACHE": str(tmp_path / "cache"),
    }

    def command(*arguments: str) -> None:
        with chdir(folder), patch.dict(os.environ, environment):
            done = run_here(*arguments)
        assert done.returncode == 0, done.stderr

    def copy() -> list[tuple[Any, ...]]:
        with sqlite3.connect(folder / "copy.sqlite") as database:
            return database.execute("SELECT id, body, deleted FROM tickets ORDER BY id").fetchall()

    with connect(server) as other:
        with other.begin():
            other.execute(text("CREATE TABLE tickets (id int PRIMARY KEY, body text)"))
            other.execute(text("INSERT INTO tickets VALUES (1, '<b>one</b>'), (2, 'two')"))
        prepare = [sys.executable, "prepare.py", "tickets"]
        subprocess.run(prepare, cwd=folder, env={**os.environ, **environment}, capture_output=True, check=True)
        command("plugin", "enable", "postgres_changes")
        command("run", "sync.yaml")
        assert copy() == [("1", "one", 0), ("2", "two", 0)]
        with other.begin():
            other.execute(text("DELETE FROM tickets WHERE id = 1"))
            other.execute(text("UPDATE tickets SET body = 'two again' WHERE id = 2"))
            other.execute(text("INSERT INTO tickets VALUES (3, 'three')"))
        command("run", "sync.yaml")
        assert copy() == [("1", None, 1), ("2", "two again", 0), ("3", "three", 0)]
