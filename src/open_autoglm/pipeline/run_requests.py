# SPDX-License-Identifier: Apache-2.0
"""What users ask of a run: to be cancelled, to pause, to go on, to run again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select, update

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.journal_records import (
    CANCELLED,
    DONE,
    ENDED,
    FAILED,
    RETRIED,
    RUNNING,
    WAITING,
    JournalReader,
    RunRecord,
)
from open_autoglm.pipeline.journal_tables import items, runs
from open_autoglm.pipeline.specification import PipelineSpecification


def ask(journal: JournalReader, run_id: str, control: str) -> RunRecord:
    """Ask for `pause` or `cancel`, or with '' for going on. What nobody works on is changed at once.

    Raises PipelineError if the run has ended.
    """
    run_id = journal.get(run_id).run_id
    with journal.begin() as connection:
        now = journal.now(connection)
        row = connection.execute(select(runs).where(runs.c.id == run_id).with_for_update()).one()
        if row.state in ENDED:
            raise PipelineError(f"the run {run_id} is {row.state}; there is nothing to {control or 'resume'}")
        held = row.owner is not None and row.lease_until is not None and row.lease_until >= now
        values: dict[str, Any] = {"control": control, "updated": now}
        if control == "cancel" and not held:
            values |= {"state": CANCELLED, "owner": None, "control": "", "epoch": row.epoch + 1}
            journal.record(connection, run_id, CANCELLED, now, None)
            journal.cancel_items(connection, run_id, now)
        elif control == "pause" and not held and row.state == RUNNING:
            values |= {"state": WAITING, "owner": None, "epoch": row.epoch + 1}
            journal.record(connection, run_id, WAITING, now, "paused")
        connection.execute(update(runs).where(runs.c.id == run_id).values(**values))
    return journal.get(run_id)


def retry(journal: JournalReader, run_id: str, from_stage: str | None = None) -> RunRecord:
    """Let a run that has ended run again: what failed or was cancelled, or everything from a stage on.

    What is done anew gets a new idempotency key, what had failed keeps its own.
    Raises PipelineError if the run has not ended, if there is nothing to do again, or no such stage.
    """
    record = journal.get(run_id)
    again = set() if from_stage is None else _followers(record.specification, from_stage)
    with journal.begin() as connection:
        now = journal.now(connection)
        row = connection.execute(select(runs).where(runs.c.id == record.run_id).with_for_update()).one()
        if row.state not in ENDED:
            raise PipelineError(f"the run {record.run_id} is {row.state}; cancel it first, or wait for its end")
        if row.state == DONE and from_stage is None:
            raise PipelineError(f"the run {record.run_id} is done; say with --from STAGE where to begin again")
        mine = items.c.run_id == record.run_id
        reset = {"state": WAITING, "failures": 0, "wake": None, "failure": None}
        # Items beyond the first come to be again when their stage is opened, perhaps in another number.
        connection.execute(delete(items).where(mine, items.c.stage.in_(again), items.c.number > 0))
        connection.execute(
            update(items)
            .where(mine, items.c.stage.in_(again))
            .values(**reset, output=None, cursor=None, generation=items.c.generation + 1)
        )
        connection.execute(
            update(items).where(mine, items.c.state.in_((FAILED, CANCELLED, RETRIED, RUNNING))).values(**reset)
        )
        connection.execute(
            update(runs)
            .where(runs.c.id == record.run_id)
            .values(state=WAITING, reason=None, control="", owner=None, result=None, updated=now)
        )
        journal.record(connection, record.run_id, WAITING, now, "again" + (f" from {from_stage}" if again else ""))
    return journal.get(record.run_id)


def _followers(specification: PipelineSpecification, stage: str) -> set[str]:
    """A stage and all that need it, directly or not."""
    specification.stage(stage)
    needs, found = specification.needs, {stage}
    for one in specification.order:
        if any(need in found for need in needs[one.stage]):
            found.add(one.stage)
    return found
