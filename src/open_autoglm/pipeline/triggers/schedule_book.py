# SPDX-License-Identifier: Apache-2.0
"""The pipelines that start by themselves, in the journal's database: no firing is lost, none starts two runs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete, insert, select, update

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_tables import schedules
from open_autoglm.pipeline.triggers.schedule import due_firings, firings
from open_autoglm.spelling import did_you_mean

_MOST_REMEMBERED: Final = 10_000


@dataclass(frozen=True)
class Schedule:
    """A pipeline that starts by itself. looked_at: every firing up to then has been dealt with."""

    pipeline: str
    content: dict[str, Any]
    cron: str | None
    timezone: str
    missed: str
    after: str | None
    paused: bool
    looked_at: datetime.datetime

    def next_firing(self, now: datetime.datetime) -> datetime.datetime | None:
        """The next one after now, in UTC; None for what no clock starts."""
        return None if self.cron is None else next(firings(self.cron, self.timezone, now), None)

    def summary(self, now: datetime.datetime) -> dict[str, Any]:
        """It as JSON. next: the moment of its next firing, in UTC."""
        following = None if self.paused else self.next_firing(now)
        return {
            "pipeline": self.pipeline,
            "cron": self.cron,
            "after": self.after,
            "timezone": self.timezone,
            "missed": self.missed,
            "paused": self.paused,
            "next": None if following is None else following.strftime("%Y-%m-%d %H:%M"),
        }


@dataclass(frozen=True)
class Firing:
    """A run that a schedule has started. left_out: missed firings for which none was."""

    pipeline: str
    run_id: str
    moment: datetime.datetime
    left_out: int


class ScheduleBook:
    """The schedules of a journal. Thread-safe; any number of workers may fire from the same one."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._following: dict[tuple[str, str, float], datetime.datetime] = {}

    def put(self, content: Mapping[str, Any], now: datetime.datetime | None = None) -> bool:
        """Enter a pipeline's file, or take its new form; True if it starts by a clock or after another pipeline.

        content: as `PipelineFile.to_dict` has it. A schedule that is known keeps its pause and goes on from where it
        was, unless its cron or time zone is another now.
        """
        trigger = content.get("trigger") or {}
        values = {
            "content": json.dumps(dict(content), ensure_ascii=False),
            "cron": trigger.get("cron"),
            "timezone": trigger.get("timezone", "UTC"),
            "missed": trigger.get("missed", "once"),
            "after": trigger.get("after"),
        }
        name = content["name"]
        with self._journal.begin() as connection:
            moment = self._journal.now(connection) if now is None else now.timestamp()
            known = connection.execute(select(schedules).where(schedules.c.pipeline == name)).first()
            if values["cron"] is None and values["after"] is None:
                connection.execute(delete(schedules).where(schedules.c.pipeline == name))
                return False
            if known is None:
                connection.execute(insert(schedules).values(pipeline=name, paused=False, looked_at=moment, **values))
            else:
                if (known.cron, known.timezone) != (values["cron"], values["timezone"]):
                    values["looked_at"] = moment
                connection.execute(update(schedules).where(schedules.c.pipeline == name).values(**values))
        return True

    def list(self) -> list[Schedule]:
        """All of them, by name."""
        with self._journal.begin() as connection:
            return [_schedule_of(row) for row in connection.execute(select(schedules).order_by(schedules.c.pipeline))]

    def pause(self, pipeline: str, *, paused: bool, now: datetime.datetime | None = None) -> None:
        """Let a schedule rest, or go on. What would have fired meanwhile has not been missed: it does not fire.

        Raises PipelineError if there is no such schedule.
        """
        with self._journal.begin() as connection:
            moment = self._journal.now(connection) if now is None else now.timestamp()
            values: dict[str, Any] = {"paused": paused} if paused else {"paused": False, "looked_at": moment}
            changed = connection.execute(update(schedules).where(schedules.c.pipeline == pipeline).values(**values))
            if changed.rowcount == 0:
                names = connection.execute(select(schedules.c.pipeline)).scalars().all()
                raise PipelineError(f"there is no schedule '{pipeline}'" + did_you_mean(pipeline, names))

    def fire(self, folder: str, now: datetime.datetime | None = None) -> list[Firing]:
        """Start a run for each firing that is due; the run and that it has been started are one transaction.

        folder: where runs have their folders.
        """
        fired: list[Firing] = []
        with self._journal.begin() as connection:
            moment = self._journal.now(connection) if now is None else now.timestamp()
            present = datetime.datetime.fromtimestamp(moment, datetime.UTC)
            rows = connection.execute(
                select(schedules)
                .where(schedules.c.cron.is_not(None), schedules.c.paused.is_(False), schedules.c.looked_at < moment)
                .with_for_update()
            ).all()
            for row in rows:
                schedule = _schedule_of(row)
                if self._next_after(schedule) > present:
                    continue
                due, left_out = due_firings(row.cron, row.timezone, schedule.looked_at, present, row.missed)
                if not due and not left_out:
                    continue
                for one in due:
                    run_id, is_new = self._submit(schedule, one, folder, connection)
                    if is_new:
                        fired.append(Firing(schedule.pipeline, run_id, one, left_out))
                connection.execute(
                    update(schedules).where(schedules.c.pipeline == schedule.pipeline).values(looked_at=moment)
                )
        return fired

    def _next_after(self, schedule: Schedule) -> datetime.datetime:
        """The first firing that has not been dealt with; remembered, since workers ask every second."""
        cron = schedule.cron or ""
        key = (cron, schedule.timezone, schedule.looked_at.timestamp())
        if key not in self._following:
            if len(self._following) > _MOST_REMEMBERED:
                self._following.clear()
            never = datetime.datetime.max.replace(tzinfo=datetime.UTC)
            self._following[key] = next(firings(cron, schedule.timezone, schedule.looked_at), never)
        return self._following[key]

    def back_fill(self, pipeline: str, start: datetime.datetime, end: datetime.datetime, folder: str) -> list[Firing]:
        """Start a run for each firing from `start` up to and without `end`, but for those that have had theirs.

        Raises PipelineError if no clock starts this pipeline, or if there would be more than 10,000 runs.
        """
        schedule = next((one for one in self.list() if one.pipeline == pipeline), None)
        if schedule is None or schedule.cron is None:
            names = [one.pipeline for one in self.list() if one.cron is not None]
            raise PipelineError(f"there is no cron schedule '{pipeline}'" + did_you_mean(pipeline, names))
        moments: list[datetime.datetime] = []
        for moment in firings(schedule.cron, schedule.timezone, start - datetime.timedelta(seconds=1)):
            if moment >= end:
                break
            moments.append(moment)
            if len(moments) > 10_000:
                raise PipelineError("these are more than 10000 firings; take a shorter time")
        fired: list[Firing] = []
        with self._journal.begin() as connection:
            for moment in moments:
                run_id, is_new = self._submit(schedule, moment, folder, connection)
                if is_new:
                    fired.append(Firing(pipeline, run_id, moment, 0))
        return fired

    def _submit(self, schedule: Schedule, moment: datetime.datetime, folder: str, connection: Any) -> tuple[str, bool]:
        stamp = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
        return self._journal.submit(
            schedule.content,
            None,
            folder=folder,
            key=f"schedule/{schedule.pipeline}/{stamp}",
            payload={"fired_at": stamp},
            connection=connection,
        )


def _schedule_of(row: Any) -> Schedule:
    return Schedule(
        pipeline=row.pipeline,
        content=json.loads(row.content),
        cron=row.cron,
        timezone=row.timezone,
        missed=row.missed,
        after=row.after,
        paused=row.paused,
        looked_at=datetime.datetime.fromtimestamp(row.looked_at, datetime.UTC),
    )
