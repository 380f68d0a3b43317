# SPDX-License-Identifier: Apache-2.0
"""The journal of runs: what is recorded, who works on it, and the fence that keeps out who works on it no more.

A worker *claims* a run for a short time, its lease, and renews it with everything that it records. If it dies or is
frozen, another claims the run with a higher epoch. Whatever the first one wants to record afterwards is refused as a
whole, for each transaction begins by asking for its own epoch; and each item takes a result only of its latest attempt.
"""

from __future__ import annotations

import json
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.journal_records import (
    CANCELLED,
    DONE,
    ENDED,
    RUNNING,
    WAITING,
    Claim,
    ItemChange,
    JournalReader,
    LeaseLostError,
)
from open_autoglm.pipeline.journal_tables import cursors, items, runs, schedules, transitions
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.placement import Capacity
from open_autoglm.pipeline.plan import ItemKey
from open_autoglm.pipeline.specification import PipelineSpecification

_CLAIM_LOCK: Final = 7_270_002
_CANDIDATES: Final = 200

# The statements that a stage costs, made once.
_RENEW: Final = (
    update(runs)
    .where(runs.c.id == bindparam("b_run"), runs.c.epoch == bindparam("b_epoch"), runs.c.owner == bindparam("b_owner"))
    .values(lease_until=bindparam("lease_until"), updated=bindparam("updated"))
    .returning(runs.c.control)
)
_THIS_ITEM: Final = (
    items.c.run_id == bindparam("b_run"),
    items.c.stage == bindparam("b_stage"),
    items.c.number == bindparam("b_number"),
)
_START: Final = (
    update(items)
    .where(*_THIS_ITEM, items.c.attempt == bindparam("b_attempt") - 1)
    .values({name: bindparam(name) for name in ("state", "attempt", "started")})
)
_END: Final = (
    update(items)
    .where(*_THIS_ITEM, items.c.attempt == bindparam("b_attempt"))
    .values({name: bindparam(name) for name in ("state", "failures", "wake", "failure", "output", "cursor", "ended")})
)
_CONTROL: Final = select(runs.c.control, runs.c.epoch, runs.c.owner).where(runs.c.id == bindparam("b_run"))


class Journal(JournalReader):
    """The writing side, for those who start runs and those who work on them."""

    def submit(
        self,
        content: Mapping[str, Any],
        packet: Packet | None,
        *,
        folder: str,
        key: str | None = None,
        run_id: str | None = None,
        priority: int | None = None,
        payload: Mapping[str, Any] | None = None,
        connection: Connection | None = None,
    ) -> tuple[str, bool]:
        """Remember a new run; returns its id, and whether it is new.

        content: as `PipelineFile.to_dict` has it. packet: what goes in; if None, one of the run's own session with
        `payload`.
        folder: where runs have their folders. key: of what starts it; a second run of one key is not made.
        Raises PipelineError if the specification is wrong.
        """
        specification = PipelineSpecification.from_dict({"name": content["name"], "stages": content["stages"]})
        run_id = run_id or uuid.uuid4().hex[:12]
        packet = packet or Packet(f"{specification.name}-{run_id}", dict(payload or {}))
        resources = [stage.resources.of_worker for stage in specification.stages]
        values = {
            "id": run_id,
            "key": key,
            "pipeline": specification.name,
            "specification": json.dumps(dict(content), ensure_ascii=False),
            "packet": json.dumps(packet.to_dict(), ensure_ascii=False),
            "folder": f"{folder}/{run_id}",
            "trace_id": secrets.token_hex(16),
            "state": WAITING,
            "priority": content.get("priority", 0) if priority is None else priority,
            "concurrency": content.get("concurrency"),
            "cpu": max(one.cpu for one in resources),
            "memory": float(max(one.memory for one in resources)),
            "gpu": max(one.gpu for one in resources),
            "control": "",
            "epoch": 0,
        }
        with self.begin(connection) as active:
            if key is not None:
                found = active.execute(select(runs.c.id).where(runs.c.key == key)).scalar()
                if found is not None:
                    return found, False
            now = self.now(active)
            try:
                with active.begin_nested():
                    active.execute(insert(runs).values(**values, created=now, updated=now))
            except IntegrityError:
                found = active.execute(select(runs.c.id).where(runs.c.key == key)).scalar()
                if found is None:
                    raise PipelineError(f"there is a run '{run_id}' already") from None
                return found, False
            names = [stage.stage for stage in specification.order]
            active.execute(insert(items), [_new_item(run_id, ItemKey(name, 0)) for name in names])
            change = {"run_id": run_id, "state": WAITING, "time": now}
            active.execute(
                insert(transitions),
                [
                    {**change, "stage": None, "number": None},
                    *({**change, "stage": name, "number": 0} for name in names),
                ],
            )
        return run_id, True

    def claim(self, owner: str, lease: float, capacity: Capacity, run_id: str | None = None) -> Claim | None:
        """Take the most urgent run that waits or whose worker is gone, or this one; None if there is none.

        A pipeline's `concurrency` is kept, and a run with a stage too large for `capacity` is left to others.
        """
        with self.begin() as connection:
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIM_LOCK})
            now = self.now(connection)
            wanted = (
                select(runs.c.id, runs.c.pipeline, runs.c.concurrency, runs.c.epoch, runs.c.state)
                .where(runs.c.state.in_((WAITING, RUNNING)), runs.c.control != "pause")
                .where((runs.c.owner.is_(None)) | (runs.c.lease_until < now))
                .where(runs.c.cpu <= capacity.cpu + 1e-9, runs.c.memory <= capacity.memory, runs.c.gpu <= capacity.gpu)
                .order_by(runs.c.priority.desc(), runs.c.created, runs.c.id)
                .limit(_CANDIDATES)
            )
            if run_id is not None:
                wanted = wanted.where(runs.c.id == run_id)
            for row in connection.execute(wanted).all():
                if row.concurrency is not None and row.state != RUNNING:
                    others = connection.execute(
                        select(func.count()).where(runs.c.pipeline == row.pipeline, runs.c.state == RUNNING)
                    ).scalar_one()
                    if others >= row.concurrency:
                        continue
                connection.execute(
                    update(runs)
                    .where(runs.c.id == row.id)
                    .values(owner=owner, epoch=row.epoch + 1, lease_until=now + lease, state=RUNNING, updated=now)
                )
                reason = "its worker was gone" if row.state == RUNNING else None
                self.record(connection, row.id, RUNNING, now, reason)
                return Claim(row.id, owner, row.epoch + 1, lease)
        return None

    def commit(self, claim: Claim, changes: Sequence[ItemChange] = (), opened: Sequence[ItemKey] = ()) -> str:
        """Record changes, all or none, and renew the lease; returns what somebody asked for: `pause`, `cancel` or ''.

        opened: items beyond the first of their stages that have come to be.
        Raises LeaseLostError if another worker has the run, or has started an item anew.
        """
        with self.begin() as connection:
            now, control = self._renew(connection, claim)
            if opened:
                rows = connection.execute(
                    select(items.c.stage, items.c.number).where(
                        items.c.run_id == claim.run_id, items.c.stage.in_({key.stage for key in opened})
                    )
                )
                known = {(row.stage, row.number) for row in rows}
                new = [key for key in opened if (key.stage, key.number) not in known]
                if new:
                    generations = self._generations(connection, claim.run_id)
                    connection.execute(
                        insert(items), [_new_item(claim.run_id, key, generations.get(key.stage, 0)) for key in new]
                    )
                    self.record_items(connection, claim.run_id, [ItemChange(key, WAITING, 0) for key in new], now)
            for change in changes:
                statement = _START if change.state == RUNNING else _END
                if connection.execute(statement, _item_values(claim, change, now)).rowcount != 1:
                    raise LeaseLostError("another attempt of a stage has been started by now")
            self.record_items(connection, claim.run_id, changes, now)
        return control

    def end(self, claim: Claim, state: str, reason: str | None = None, result: Packet | None = None) -> None:
        """Record how the run ended, or with `waiting` that it goes on later, and let go of it.

        A run that is done hands its cursors to the next. Raises LeaseLostError.
        """
        with self.begin() as connection:
            now, _ = self._renew(connection, claim)
            values: dict[str, Any] = {"state": state, "reason": reason, "owner": None, "lease_until": None}
            if result is not None:
                values["result"] = json.dumps(result.to_dict(), ensure_ascii=False)
            if state in ENDED:
                values["control"] = ""
            connection.execute(update(runs).where(runs.c.id == claim.run_id).values(**values, updated=now))
            self.record(connection, claim.run_id, state, now, reason)
            if state == CANCELLED:
                self.cancel_items(connection, claim.run_id, now)
            if state == DONE:
                self._hand_on_cursors(connection, claim.run_id)
                self._start_followers(connection, claim.run_id, result)

    def release_gone(self, is_gone: Callable[[str], bool]) -> None:
        """Take runs from workers of which is known that they are gone, before their leases end."""
        with self.begin() as connection:
            owners = connection.execute(select(runs.c.owner).where(runs.c.owner.is_not(None)).distinct()).scalars()
            for owner in [owner for owner in owners if is_gone(owner)]:
                connection.execute(update(runs).where(runs.c.owner == owner).values(lease_until=0.0))

    def control(self, claim: Claim) -> str:
        """What somebody asked for: `pause`, `cancel` or ''. Raises LeaseLostError if another worker has the run."""
        with self.begin() as connection:
            row = connection.execute(_CONTROL, {"b_run": claim.run_id}).one()
        if (row.epoch, row.owner) != (claim.epoch, claim.owner):
            raise LeaseLostError(f"another worker has the run {claim.run_id} by now")
        return row.control

    def _renew(self, connection: Connection, claim: Claim) -> tuple[float, str]:
        now = self.now(connection)
        values = {"b_run": claim.run_id, "b_epoch": claim.epoch, "b_owner": claim.owner}
        control = connection.execute(_RENEW, {**values, "lease_until": now + claim.lease, "updated": now}).scalar()
        if control is None:
            raise LeaseLostError(f"another worker has the run {claim.run_id} by now")
        return now, control

    def _generations(self, connection: Connection, run_id: str) -> dict[str, int]:
        rows = connection.execute(
            select(items.c.stage, items.c.generation).where(items.c.run_id == run_id, items.c.number == 0)
        )
        return {row.stage: row.generation for row in rows}

    def _start_followers(self, connection: Connection, run_id: str, result: Packet | None) -> None:
        """Start the pipelines that come after this one, with its result as their payload."""
        run = connection.execute(select(runs.c.pipeline, runs.c.folder).where(runs.c.id == run_id)).one()
        following = connection.execute(
            select(schedules.c.pipeline, schedules.c.content).where(
                schedules.c.after == run.pipeline, schedules.c.paused.is_(False)
            )
        ).all()
        for row in following:
            self.submit(
                json.loads(row.content),
                None,
                folder=run.folder.rpartition("/")[0],
                key=f"after/{run_id}/{row.pipeline}",
                payload=None if result is None else result.payload,
                connection=connection,
            )

    def _hand_on_cursors(self, connection: Connection, run_id: str) -> None:
        pipeline = connection.execute(select(runs.c.pipeline).where(runs.c.id == run_id)).scalar_one()
        rows = connection.execute(
            select(items.c.stage, items.c.cursor)
            .where(items.c.run_id == run_id, items.c.cursor.is_not(None))
            .order_by(items.c.number)
        ).all()
        for stage, value in {row.stage: row.cursor for row in rows}.items():
            connection.execute(delete(cursors).where(cursors.c.pipeline == pipeline, cursors.c.stage == stage))
            connection.execute(insert(cursors).values(pipeline=pipeline, stage=stage, value=value, run_id=run_id))


def _new_item(run_id: str, key: ItemKey, generation: int = 0) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "stage": key.stage,
        "number": key.number,
        "state": WAITING,
        "attempt": 0,
        "failures": 0,
        "generation": generation,
    }


def _item_values(claim: Claim, change: ItemChange, now: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "b_run": claim.run_id,
        "b_stage": change.key.stage,
        "b_number": change.key.number,
        "b_attempt": change.attempt,
        "state": change.state,
    }
    if change.state == RUNNING:
        return {**values, "attempt": change.attempt, "started": now}
    output = None if change.output is None else [packet.to_dict() for packet in change.output]
    return {
        **values,
        "failures": change.failures,
        "wake": change.wake,
        "failure": None if change.failure is None else json.dumps(dict(change.failure), ensure_ascii=False),
        "output": None if output is None else json.dumps(output, ensure_ascii=False),
        "cursor": json.dumps(change.cursor, ensure_ascii=False) if change.has_cursor else None,
        "ended": now,
    }
