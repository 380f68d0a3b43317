# SPDX-License-Identifier: Apache-2.0
"""`sql_source`: the rows of a query as records, from where the last run came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.database import explained_database, json_of, open_database
from open_autoglm.pipeline.stages.record_fields import ID, with_records
from open_autoglm.spelling import did_you_mean

if TYPE_CHECKING:
    from sqlalchemy import Engine


class SqlSourceConfig(BaseModel):
    """url: of SQLAlchemy. query: one that selects; `:cursor` in it is where the last run came to.

    cursor: the column that says so, which must grow; start: its value before the first run. id: the column that tells
    records apart. parameters: for other names in the query. limit: rows of one run, more only to take rows of equal
    cursor together; the query must then be ordered by the cursor.
    """

    model_config = ConfigDict(extra="forbid")

    url: str
    query: str = Field(min_length=1)
    cursor: str | None = None
    start: int | float | str = 0
    id: str = ID
    parameters: dict[str, str | int | float | bool | None] = {}
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _cursor_is_used(self) -> SqlSourceConfig:
        from sqlalchemy import text

        names = set(text(self.query).compile().params)
        if ("cursor" in names) != (self.cursor is not None):
            raise ValueError(
                "the query has no :cursor, so every run would take all rows again; put `where ... > :cursor` into it"
                if self.cursor is not None
                else "the query has :cursor; say which column it is with 'cursor'"
            )
        if missing := sorted(names - {"cursor"} - set(self.parameters)):
            raise ValueError(f"the query has :{missing[0]}, and 'parameters' has no value for it")
        if self.limit is not None and self.cursor is None:
            raise ValueError("a limit needs a cursor, or the rows after it would never be taken")
        return self


class SqlSource:
    """Reads in one transaction; the cursor counts once the whole run is done."""

    config_model = SqlSourceConfig

    def __init__(self, config: SqlSourceConfig) -> None:
        self._config = config
        self._engine: Engine = open_database(config.url)

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with the rows as its records."""
        cursor = _Cursor(self._config, context.cursor)
        result = with_records(packet, context, self._rows(cursor))
        if cursor.value is not None:
            context.set_cursor(cursor.value)
        return result

    def _rows(self, cursor: _Cursor) -> Iterator[dict[str, Any]]:
        from sqlalchemy import text

        config = self._config
        values: dict[str, Any] = dict(config.parameters)
        if config.cursor is not None:
            values["cursor"] = config.start if cursor.before is None else cursor.before
        seen: set[Any] = set()
        with explained_database("the query of sql_source"), self._engine.connect() as connection:
            rows = connection.execution_options(stream_results=True).execute(text(config.query), values).mappings()
            for number, found in enumerate(rows, 1):
                row = {str(name): value for name, value in found.items()}
                record = {name: json_of(value) for name, value in row.items()}
                if config.id not in record:
                    raise PipelineError(
                        f"the query gives no column '{config.id}'{did_you_mean(config.id, record)}; "
                        "config.id names the column that tells rows apart"
                    )
                identity = record[config.id]
                if identity is None or identity in seen:
                    reason = "which is none" if identity is None else "as a row before it has"
                    raise PipelineError(f"row {number} of the query has the {config.id} {identity!r}, {reason}")
                seen.add(identity)
                if not cursor.take(row, number):
                    break
                yield {**record, ID: identity}


class _Cursor:
    """How far the rows have come."""

    def __init__(self, config: SqlSourceConfig, before: Any) -> None:
        self._column, self._limit, self.before = config.cursor, config.limit, before
        self._highest: Any = None

    @property
    def value(self) -> Any:
        """Where the next run goes on; None if there was no row."""
        return json_of(self._highest)

    def take(self, row: Mapping[str, Any], number: int) -> bool:
        """Count a row in; False if it is one for the next run."""
        if self._column is None:
            return True
        if self._column not in row:
            raise PipelineError(f"the query gives no column '{self._column}'{did_you_mean(self._column, row)}")
        value = row[self._column]
        if value is None:
            raise PipelineError(f"row {number} of the query has nothing in its cursor '{self._column}'")
        try:
            smaller = self._highest is not None and value < self._highest
        except TypeError:
            raise PipelineError(f"the cursor '{self._column}' of row {number} cannot be compared with others") from None
        if self._limit is not None:
            if smaller:
                raise PipelineError(f"with a limit the query must end with `order by {self._column}`")
            if number > self._limit and value != self._highest:
                return False
        if not smaller:
            self._highest = value
        return True
