# SPDX-License-Identifier: Apache-2.0
"""Runs as they are remembered: the reading side of the journal, and the values that it deals in."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Engine, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.journal_tables import clock, cursors, explain, items, open_engine, runs, transitions
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.plan import ItemKey
from open_autoglm.pipeline.specification import PipelineSpecification
from open_autoglm.spelling import did_you_mean

WAITING: Final = "waiting"
RUNNING: Final = "running"
DONE: Final = "done"
FAILED: Final = "failed"
RETRIED: Final = "retried"
CANCELLED: Final = "cancelled"
PAUSED: Final = "paused"
"""Not recorded: how a run is shown that waits because somebody paused it."""
ENDED: Final = (DONE, FAILED, CANCELLED)


class LeaseLostError(PipelineError):
    """Another worker has the run by now."""


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a run. lease: seconds until it ends unless it is renewed."""

    run_id: str
    owner: str
    epoch: int
    lease: float


@dataclass(frozen=True)
class ItemRecord:
    """What is known about an item. wake: seconds since 1970."""

    key: ItemKey
    state: str
    attempt: int = 0
    failures: int = 0
    generation: int = 0
    wake: float | None = None
    output: list[dict[str, Any]] | None = None
    failure: dict[str, Any] | None = None
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True)
class ItemChange:
    """One change of an item's state. attempt: the one that it is about, which must still be the latest."""

    key: ItemKey
    state: str
    attempt: int
    failures: int = 0
    reason: str | None = None
    wake: float | None = None
    output: Sequence[Packet] | None = None
    failure: Mapping[str, Any] | None = None
    cursor: Any = None
    has_cursor: bool = False


@dataclass(frozen=True)
class RunRecord:
    """A run as it is remembered. Times are seconds since 1970."""

    run_id: str
    pipeline: str
    content: dict[str, Any] = field(repr=False)
    packet: Packet = field(repr=False)
    result: Packet | None = field(repr=False)
    folder: str
    trace_id: str
    state: str
    reason: str | None
    priority: int
    control: str
    owner: str | None
    epoch: int
    lease_until: float | None
    created: float
    updated: float

    @property
    def specification(self) -> PipelineSpecification:
        """The pipeline that it goes through."""
        return PipelineSpecification.from_dict({"name": self.content["name"], "stages": self.content["stages"]})


class JournalReader:
    """What is remembered about runs, in one database. Thread-safe.

    Raises ConfigurationError for a URL that is none, StorageError when the database refuses.
    """

    def __init__(self, url: str) -> None:
        self.engine: Engine = open_engine(url)
        self._clock = clock(self.engine)

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()

    def get(self, run_id: str) -> RunRecord:
        """A run by its id, or by the beginning of it if that is enough. Raises PipelineError if there is none."""
        with self.begin() as connection:
            found = connection.execute(select(runs).where(runs.c.id == run_id)).all()
            if not found:
                found = connection.execute(
                    select(runs).where(runs.c.id.startswith(run_id, autoescape=True)).limit(2)
                ).all()
            if len(found) == 1:
                return run_of(found[0])
            if found:
                raise PipelineError(f"several runs begin with '{run_id}'; give more of its id")
            known = connection.execute(select(runs.c.id).order_by(runs.c.created.desc()).limit(200)).scalars().all()
        raise PipelineError(f"there is no run '{run_id}'" + did_you_mean(run_id, known))

    def find(self, run_id: str) -> RunRecord | None:
        """A run by its whole id; None if there is none."""
        with self.begin() as connection:
            row = connection.execute(select(runs).where(runs.c.id == run_id)).first()
        return None if row is None else run_of(row)

    def list(
        self, pipeline: str | None = None, state: str | None = None, limit: int = 50, after: str | None = None
    ) -> list[RunRecord]:
        """The latest runs, the newest first. after: a run's id; those that come after it in this order.

        state: `paused` too, which are waiting runs that somebody has paused. Raises PipelineError if there is no run
        of the id.
        """
        query = select(runs).order_by(runs.c.created.desc(), runs.c.id).limit(limit)
        if pipeline is not None:
            query = query.where(runs.c.pipeline == pipeline)
        if state == PAUSED:
            query = query.where(runs.c.control == "pause")
        elif state is not None:
            query = query.where(runs.c.state == state)
        with self.begin() as connection:
            if after is not None:
                created = connection.execute(select(runs.c.created).where(runs.c.id == after)).scalar()
                if created is None:
                    raise PipelineError(f"there is no run '{after}'")
                same = (runs.c.created == created) & (runs.c.id > after)
                query = query.where((runs.c.created < created) | same)
            return [run_of(row) for row in connection.execute(query)]

    def items(self, run_id: str, *, with_output: bool = True) -> dict[ItemKey, ItemRecord]:
        """All items of a run that are known by now. with_output: what they gave, too, which may be much."""
        columns = [column for column in items.c if with_output or column is not items.c.output]
        with self.begin() as connection:
            rows = connection.execute(
                select(*columns).where(items.c.run_id == run_id).order_by(items.c.stage, items.c.number)
            ).all()
        found: dict[ItemKey, ItemRecord] = {}
        for row in rows:
            key = ItemKey(row.stage, row.number)
            found[key] = ItemRecord(
                key,
                row.state,
                row.attempt,
                row.failures,
                row.generation,
                row.wake,
                None if not with_output or row.output is None else json.loads(row.output),
                None if row.failure is None else json.loads(row.failure),
                row.started,
                row.ended,
            )
        return found

    def transitions(self, run_id: str, after: int = 0, limit: int | None = None) -> list[dict[str, Any]]:
        """Every change of state, in order. after: the `id` of the last one that is known. limit: so many at most."""
        query = select(transitions).where(transitions.c.run_id == run_id, transitions.c.id > after)
        with self.begin() as connection:
            return [dict(row) for row in connection.execute(query.order_by(transitions.c.id).limit(limit)).mappings()]

    def last_transition(self, run_id: str) -> int:
        """The `id` of a run's last change of state; 0 if there is none."""
        query = select(func.max(transitions.c.id)).where(transitions.c.run_id == run_id)
        with self.begin() as connection:
            return connection.execute(query).scalar() or 0

    def cursors(self, pipeline: str) -> dict[str, Any]:
        """How far each stage of a pipeline has come in runs that are done."""
        with self.begin() as connection:
            rows = connection.execute(select(cursors.c.stage, cursors.c.value).where(cursors.c.pipeline == pipeline))
            return {row.stage: json.loads(row.value) for row in rows}

    @contextlib.contextmanager
    def begin(self, connection: Connection | None = None) -> Iterator[Connection]:
        """A transaction, or the one that is given. Raises StorageError for what the database refuses."""
        try:
            if connection is not None:
                yield connection
                return
            with self.engine.begin() as active:
                yield active
        except SQLAlchemyError as error:
            raise explain(error) from error

    def now(self, connection: Connection) -> float:
        """Seconds since 1970, by the database's clock if it has one."""
        return time.time() if self._clock is None else float(connection.execute(self._clock).scalar_one())

    def record(self, connection: Connection, run_id: str, state: str, now: float, reason: str | None) -> None:
        """Note that a run has changed its state."""
        connection.execute(insert(transitions).values(run_id=run_id, state=state, time=now, reason=reason))

    def record_items(self, connection: Connection, run_id: str, changes: Sequence[ItemChange], now: float) -> None:
        """Note that items have changed their states."""
        if changes:
            connection.execute(
                insert(transitions),
                [
                    {
                        "run_id": run_id,
                        "stage": change.key.stage,
                        "number": change.key.number,
                        "state": change.state,
                        "attempt": change.attempt,
                        "time": now,
                        "reason": change.reason,
                    }
                    for change in changes
                ],
            )

    def cancel_items(self, connection: Connection, run_id: str, now: float) -> None:
        """Cancel every item of a run that has not ended."""
        rows = connection.execute(
            select(items.c.stage, items.c.number, items.c.attempt).where(
                items.c.run_id == run_id, items.c.state.in_((WAITING, RUNNING, RETRIED))
            )
        ).all()
        connection.execute(
            update(items)
            .where(items.c.run_id == run_id, items.c.state.in_((WAITING, RUNNING, RETRIED)))
            .values(state=CANCELLED, ended=now)
        )
        changes = [ItemChange(ItemKey(row.stage, row.number), CANCELLED, row.attempt) for row in rows]
        self.record_items(connection, run_id, changes, now)


def run_of(row: Any) -> RunRecord:
    """A row of the table as a record."""
    return RunRecord(
        run_id=row.id,
        pipeline=row.pipeline,
        content=json.loads(row.specification),
        packet=Packet.from_dict(json.loads(row.packet)),
        result=None if row.result is None else Packet.from_dict(json.loads(row.result)),
        folder=row.folder,
        trace_id=row.trace_id,
        state=row.state,
        reason=row.reason,
        priority=row.priority,
        control=row.control,
        owner=row.owner,
        epoch=row.epoch,
        lease_until=row.lease_until,
        created=row.created,
        updated=row.updated,
    )
