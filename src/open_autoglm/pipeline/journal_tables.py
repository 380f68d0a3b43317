# SPDX-License-Identifier: Apache-2.0
"""The tables in which runs are remembered, on SQLite or PostgreSQL, and how these are opened.

Imported only where runs are kept: SQLAlchemy takes its time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from open_autoglm.errors import ConfigurationError, StorageError
from open_autoglm.storage import explained

_CREATION_LOCK: Final = 7_270_001
_BUSY_SECONDS: Final = 60.0
_IDLE_MILLISECONDS: Final = 10_000

metadata: Final = MetaData()

runs: Final = Table(
    "pipeline_runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("key", Text, unique=True, nullable=True),  # of what started it: the same firing starts one run only
    Column("pipeline", Text, nullable=False),
    Column("specification", Text, nullable=False),
    Column("packet", Text, nullable=False),
    Column("result", Text),
    Column("folder", Text, nullable=False),
    Column("trace_id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("priority", Integer, nullable=False),
    Column("concurrency", Integer),
    Column("cpu", Double, nullable=False),  # the most that one of its stages wants
    Column("memory", Double, nullable=False),
    Column("gpu", Integer, nullable=False),
    Column("control", Text, nullable=False),  # what somebody asked for: pause, cancel, or nothing
    Column("owner", Text),
    Column("epoch", Integer, nullable=False),  # counts the claims: who holds an older one may write nothing
    Column("lease_until", Double),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Index("pipeline_runs_by_state", "state", "priority", "created"),
    Index("pipeline_runs_by_pipeline", "pipeline", "state"),
    Index("pipeline_runs_by_owner", "owner"),
)

items: Final = Table(
    "pipeline_items",
    metadata,
    Column("run_id", Text, ForeignKey("pipeline_runs.id"), primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),  # how often it was started
    Column("failures", Integer, nullable=False),  # how often in a row it failed
    Column("generation", Integer, nullable=False),  # how often it was asked to be done anew
    Column("wake", Double),  # when the next attempt may start
    Column("output", Text),
    Column("failure", Text),
    Column("cursor", Text),
    Column("started", Double),
    Column("ended", Double),
)

transitions: Final = Table(
    "pipeline_transitions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", Text, ForeignKey("pipeline_runs.id"), nullable=False, index=True),
    Column("stage", Text),
    Column("number", Integer),
    Column("state", Text, nullable=False),
    Column("attempt", Integer),
    Column("time", Double, nullable=False),
    Column("reason", Text),
)

cursors: Final = Table(
    "pipeline_cursors",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("run_id", Text, nullable=False),
)

schedules: Final = Table(
    "pipeline_schedules",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("content", Text, nullable=False),  # what a run of it needs to know, as JSON
    Column("cron", Text),
    Column("timezone", Text, nullable=False),
    Column("missed", Text, nullable=False),
    Column("after", Text),  # another pipeline
    Column("paused", Boolean, nullable=False),
    Column("looked_at", Double, nullable=False),  # every firing up to here has been dealt with
)

workers: Final = Table(
    "pipeline_workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("seen", Double, nullable=False),  # when it last said that it lives
)


def open_engine(url: str) -> Engine:
    """Connect to `sqlite:///FILE` or `postgresql://...` and make what tables are missing.

    Raises ConfigurationError for a URL that is none, StorageError when the database cannot be used.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigurationError("--database must be like sqlite:///FILE or postgresql://HOST/NAME") from None
    if parsed.drivername.startswith("postgres"):
        parsed = parsed.set(drivername="postgresql+pg8000")
        try:
            engine = create_engine(parsed, pool_pre_ping=True, pool_size=4)
            event.listen(engine, "connect", _prepare_postgres)
        except ImportError:
            raise ConfigurationError(
                "PostgreSQL needs a driver that is not installed: pip install 'open-autoglm[postgres]'"
            ) from None
    elif parsed.drivername == "sqlite":
        if not parsed.database:
            raise ConfigurationError("--database must name a file, like sqlite:///FILE")
        path = Path(parsed.database)
        with explained(path, "write"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One connection, which threads take in turn: they would wait for each other's transactions anyway.
        options = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
        engine = create_engine(
            parsed, connect_args=options, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=_BUSY_SECONDS
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        raise ConfigurationError(f"--database: {parsed.drivername} is not supported; use sqlite or postgresql")
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})
            metadata.create_all(connection)
    except SQLAlchemyError as error:
        raise explain(error) from error
    return engine


def explain(error: SQLAlchemyError) -> StorageError:
    """A StorageError that says what to do about an error of the database; never with values or passwords."""
    cause = getattr(error, "orig", None) or error
    details = cause.args[0] if cause.args and isinstance(cause.args[0], dict) else {}
    reason = str(details.get("M") or cause).strip().splitlines()[0]  # PostgreSQL's driver has a field for the message
    if "full" in reason or "disk I/O" in reason:
        return StorageError(
            f"the database of pipelines cannot be written: the disk is full or failing ({reason}); free some space and "
            "resume the run, it continues where it stopped"
        )
    return StorageError(f"the database of pipelines cannot be used: {reason}")


def clock(engine: Engine) -> Any:
    """A query for the time in seconds since 1970, by PostgreSQL's clock, since those of several machines differ.

    None for SQLite, all of whose users are on one machine.
    """
    if engine.dialect.name == "postgresql":
        return select(func.extract("epoch", func.clock_timestamp()))
    return None


def _prepare_sqlite(connection: Any, _: object) -> None:
    # SQLAlchemy's driver must not open transactions by itself: a reader that becomes a writer could find it too late.
    connection.isolation_level = None
    # The rollback journal: WAL can corrupt before SQLite 3.51.3. TRUNCATE saves unlinking it each time.
    connection.execute("PRAGMA journal_mode=TRUNCATE").fetchall()
    connection.execute("PRAGMA synchronous=FULL")


def _prepare_postgres(connection: Any, _: object) -> None:
    # A worker that freezes inside a transaction must not hold its locks for ever: the server ends its session.
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MILLISECONDS}")
    cursor.close()
    connection.commit()


def _begin_sqlite(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
