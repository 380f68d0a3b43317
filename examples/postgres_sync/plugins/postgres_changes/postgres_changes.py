# SPDX-License-Identifier: Apache-2.0
"""A source for Open-AutoGLM: what has changed in a table of PostgreSQL since the last run, deletes included.

A trigger (`prepare`) notes the latest transaction that changed each row in the table TABLE_changes; the cursor is a
transaction number. A column such as `updated_at` would lose rows: a transaction that began earlier may commit later,
with a time that the cursor has passed already. So only changes of transactions below the oldest that still runs
(`pg_snapshot_xmin`) are taken; the others come next time. None is missed and none comes twice.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Engine, create_engine, text

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,53}")

_PREPARE = (
    """CREATE TABLE IF NOT EXISTS {table}_changes (
        id text PRIMARY KEY, changed xid8 NOT NULL DEFAULT pg_current_xact_id(), deleted boolean NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS {table}_changes_changed ON {table}_changes (changed)",
    """CREATE OR REPLACE FUNCTION {table}_note_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND OLD.{id} IS DISTINCT FROM NEW.{id}) THEN
            INSERT INTO {table}_changes (id, deleted) VALUES (OLD.{id}::text, true)
            ON CONFLICT (id) DO UPDATE SET changed = pg_current_xact_id(), deleted = true;
        END IF;
        IF TG_OP <> 'DELETE' THEN
            INSERT INTO {table}_changes (id, deleted) VALUES (NEW.{id}::text, false)
            ON CONFLICT (id) DO UPDATE SET changed = pg_current_xact_id(), deleted = false;
        END IF;
        RETURN NULL;
    END $$""",
    """CREATE OR REPLACE TRIGGER {table}_note_change AFTER INSERT OR UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {table}_note_change()""",
    "INSERT INTO {table}_changes (id, deleted) SELECT {id}::text, false FROM {table} ON CONFLICT DO NOTHING",
)

_CHANGED = """
    SELECT changes.id AS changed_id, changes.deleted AS was_deleted, rows.*
    FROM {table}_changes AS changes LEFT JOIN {table} AS rows ON rows.{id}::text = changes.id
    WHERE changes.changed >= CAST(:cursor AS xid8) AND changes.changed < CAST(:horizon AS xid8)
    ORDER BY changes.changed, changes.id
"""


class PostgresChanges:
    """Settings: `url` (postgresql://...), `table`, `id` (its key, `id` if not given)."""

    def connect(self, config: Mapping[str, Any]) -> None:
        """Open the database; nothing is asked yet. Raises ValueError for names that are none."""
        names = {"table": str(config["table"]), "id": str(config.get("id", "id"))}
        for name in names.values():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a table or a column: use letters, digits and '_'")
        self._names = names
        url = str(config["url"]).replace("postgresql://", "postgresql+pg8000://", 1)
        self._engine: Engine = create_engine(url)

    def prepare(self) -> None:
        """Make the table of changes and its trigger; once, by the owner of the table. What is in it counts as changed.

        It is locked meanwhile, so that no change falls between the trigger and the first look at the rows.
        """
        with self._engine.begin() as connection:
            connection.execute(text("LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE".format(**self._names)))
            for statement in _PREPARE:
                connection.execute(text(statement.format(**self._names)))

    def fetch(self, cursor: Any) -> tuple[Iterable[Mapping[str, Any]], Any]:
        """The rows that transactions from number `cursor` on have changed, and the number to go on from."""
        connection = self._engine.connect().execution_options(isolation_level="REPEATABLE READ", stream_results=True)
        horizon = str(connection.execute(text("SELECT pg_snapshot_xmin(pg_current_snapshot())")).scalar_one())
        values = {"cursor": str(cursor or 0), "horizon": horizon}

        def rows() -> Iterator[Mapping[str, Any]]:
            with connection:
                yield from connection.execute(text(_CHANGED.format(**self._names)), values).mappings()

        return rows(), horizon

    def preprocess(self, records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """JSON: the row with `deleted: false`, or the key with `deleted: true`."""
        for record in records:
            row = dict(record)
            key, deleted = row.pop("changed_id"), row.pop("was_deleted")
            name = self._names["id"]
            if deleted:
                yield {name: key, "deleted": True}
            else:
                yield {**{column: _json(value) for column, value in row.items()}, name: key, "deleted": False}


def _json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | list | dict):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is no JSON value; leave its column out by a view")
