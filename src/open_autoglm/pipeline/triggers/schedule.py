# SPDX-License-Identifier: Apache-2.0
"""When a cron fires: pure functions of a time that is given, right on both edges of daylight saving.

The rules are those of Debian's cron, by way of cronsim. A time of day that a clock change leaves out fires at the
moment of the change; one that comes twice fires the first time; what fires all day long, like `*/15 * * * *`, goes on
by the real time.
"""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterator
from typing import Final, Literal

from cronsim import CronSim, CronSimError

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean

Missed = Literal["once", "all", "skip"]

GRACE_SECONDS: Final = 90.0
"""A firing that is later than this has been missed."""

MOST_MISSED: Final = 1000
"""Of the firings that were missed, so many of the latest are made up for."""


def check_cron(cron: str) -> None:
    """Raises ConfigurationError if this is no cron expression of five fields, or one that never fires."""
    if len(cron.split()) != 5:
        raise ConfigurationError(
            f"{cron!r} is not a cron: it has {len(cron.split())} fields, and needs 5 (minute, hour, day of the month, "
            "month, day of the week)"
        )
    try:
        next(CronSim(cron, datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)))
    except CronSimError as error:
        raise ConfigurationError(f"{cron!r} is not a cron: {str(error).lower()}") from None
    except StopIteration:
        raise ConfigurationError(f"{cron!r} never fires") from None


def check_timezone(name: str) -> None:
    """Raises ConfigurationError, with what was probably meant, if there is no such time zone."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigurationError(
            f"unknown time zone '{name}'" + did_you_mean(name, zoneinfo.available_timezones())
        ) from None


def firings(cron: str, timezone: str, after: datetime.datetime) -> Iterator[datetime.datetime]:
    """The moments after `after` at which the cron fires, in UTC, each later than the one before.

    after: a time with its zone. Raises ConfigurationError for a cron or a time zone that is none.
    """
    check_cron(cron)
    check_timezone(timezone)
    last = after.astimezone(datetime.UTC)
    for moment in CronSim(cron, last.astimezone(zoneinfo.ZoneInfo(timezone))):
        fired = moment.astimezone(datetime.UTC)
        if fired > last:  # two times of day may fall on the moment of a clock change
            last = fired
            yield fired


def due_firings(
    cron: str, timezone: str, looked_at: datetime.datetime, now: datetime.datetime, missed: Missed = "once"
) -> tuple[list[datetime.datetime], int]:
    """The firings after `looked_at` and up to `now` that are to start a run, and how many others were left out.

    missed: what of those that are late: the latest one for all of them (`once`), each (`all`, at most MOST_MISSED of
    them), or none (`skip`).
    """
    due: list[datetime.datetime] = []
    left_out = 0
    for fired in firings(cron, timezone, looked_at):
        if fired > now:
            break
        due.append(fired)
        if len(due) > MOST_MISSED:
            due.pop(0)
            left_out += 1
    on_time = [fired for fired in due if (now - fired).total_seconds() <= GRACE_SECONDS]
    if missed == "skip":
        return on_time, left_out + len(due) - len(on_time)
    if missed == "once":
        kept = on_time or due[-1:]
        return kept, left_out + len(due) - len(kept)
    return due, left_out
