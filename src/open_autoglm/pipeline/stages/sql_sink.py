# SPDX-License-Identifier: Apache-2.0
"""`sql_sink`: records into a table, each once, however often a stage is tried."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.database import explained_database, open_database
from open_autoglm.pipeline.stages.record_fields import ID, RECORDS_SCHEMA, name_of, records_of
from open_autoglm.spelling import did_you_mean

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Table

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_ROWS: Final = 500


class SqlSinkConfig(BaseModel):
    """url: of SQLAlchemy; in a pipeline's file that of the `sql_source` before it, if not given. table: made from the
    first records if it is not there. key: the column that tells records
    apart, which must be the primary key or unique. columns: which fields to write; all if not given.

    on_conflict: what to do about a key that is there already: write the new values over it, or leave it.
    """

    model_config = ConfigDict(extra="forbid")

    url: str
    table: str = "answers"
    key: str = ID
    columns: list[str] | None = Field(default=None, min_length=1)
    on_conflict: Literal["update", "ignore"] = "update"

    @field_validator("table", "key")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(f"{value!r} cannot name a table or column: use letters, digits and '_'")
        return value


class SqlSink:
    """Writes all records of a packet in one transaction, by a statement that keeps one row for each key."""

    config_model = SqlSinkConfig
    input_schema = RECORDS_SCHEMA
    inherits: ClassVar = {"url": "sql_source"}

    def __init__(self, config: SqlSinkConfig) -> None:
        self._config = config
        self._engine: Engine = open_database(config.url)
        self._table: Table | None = None

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet as it came, with `written`: how many records it had."""
        count = 0
        with explained_database(f"the table {self._config.table}"), self._engine.begin() as connection:
            for part in _parts(records_of(packet)):
                table = self._table_for(connection, part[0])
                names = list(dict.fromkeys((self._config.key, *(self._config.columns or itertools.chain(*part)))))
                rows = [self._row(record, table, names) for record in part]
                self._upsert(connection, table, list({row[self._config.key]: row for row in rows}.values()))
                count += len(rows)
        context.log.info("%d records to %s", count, self._config.table)
        return packet.with_payload({**packet.payload, "written": count})

    def _row(self, record: Mapping[str, Any], table: Table, names: list[str]) -> dict[str, Any]:
        """The record as a row of these columns; a field that only others have is empty."""
        config = self._config
        if record.get(config.key) is None:
            raise PipelineError(f"{name_of(record)} has no '{config.key}', by which sql_sink tells records apart")
        for name in names:
            if name not in table.c and name in record:
                raise PipelineError(
                    f"{name_of(record)}: the table {config.table} has no column '{name}'"
                    f"{did_you_mean(name, table.c.keys())} (add it, or name those to write with config.columns)"
                )
            if name not in record and config.columns is not None:
                raise PipelineError(f"{name_of(record)} has no field '{name}' of config.columns")
        return {name: _column_value(record.get(name)) for name in names if name in table.c}

    def _table_for(self, connection: Connection, record: Mapping[str, Any]) -> Table:
        from sqlalchemy import MetaData, Table, inspect
        from sqlalchemy.exc import DBAPIError

        if self._table is not None:
            return self._table
        name = self._config.table
        if not inspect(connection).has_table(name):
            made = Table(name, MetaData(), *self._columns(record))
            try:
                with connection.begin_nested():
                    made.create(connection, checkfirst=True)
            except DBAPIError:  # another worker was faster
                if not inspect(connection).has_table(name):
                    raise
        table = Table(name, MetaData(), autoload_with=connection)
        self._check_key(connection, table)
        self._table = table
        return table

    def _columns(self, record: Mapping[str, Any]) -> list[Any]:
        from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, String, Text

        key = self._config.key
        columns: list[Any] = []
        for name in dict.fromkeys((key, *(self._config.columns or record))):
            if not _NAME.fullmatch(name):
                raise PipelineError(f"{name_of(record)}: the field {name!r} cannot name a column; use config.columns")
            value = record.get(name)
            kind: Any = Text()
            if isinstance(value, bool):
                kind = Boolean()
            elif isinstance(value, int):
                kind = BigInteger().with_variant(Integer(), "sqlite")
            elif isinstance(value, float):
                kind = Double()
            elif name == key:
                kind = String(255)
            columns.append(Column(name, kind, primary_key=name == key, autoincrement=False))
        return columns

    def _check_key(self, connection: Connection, table: Table) -> None:
        from sqlalchemy import inspect

        key, inspector = self._config.key, inspect(connection)
        unique = [tuple(one["column_names"]) for one in inspector.get_unique_constraints(table.name)]
        unique += [tuple(one["column_names"]) for one in inspector.get_indexes(table.name) if one["unique"]]
        if (key,) not in (tuple(column.name for column in table.primary_key), *unique):
            raise PipelineError(
                f"'{key}' is neither the primary key of {table.name} nor unique, so that a record could be there twice"
            )

    def _upsert(self, connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
        from sqlalchemy.dialects import mysql, postgresql, sqlite

        key, dialect = self._config.key, self._engine.dialect.name
        others = [name for name in rows[0] if name != key]
        ignores = self._config.on_conflict == "ignore" or not others
        if dialect in ("sqlite", "postgresql"):
            insert: Any = (sqlite if dialect == "sqlite" else postgresql).insert(table)
            if ignores:
                insert = insert.on_conflict_do_nothing(index_elements=[key])
            else:
                new = {name: insert.excluded[name] for name in others}
                insert = insert.on_conflict_do_update(index_elements=[key], set_=new)
        elif dialect in ("mysql", "mariadb"):
            insert = mysql.insert(table)
            chosen = [key] if ignores else others
            insert = insert.on_duplicate_key_update({name: insert.inserted[name] for name in chosen})
        else:
            raise PipelineError(f"sql_sink does not know how to write each record once to {dialect}")
        connection.execute(insert, rows)


def _parts(records: Iterable[dict[str, Any]]) -> Iterable[list[dict[str, Any]]]:
    iterator = iter(records)
    while part := list(itertools.islice(iterator, _ROWS)):
        yield part


def _column_value(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
