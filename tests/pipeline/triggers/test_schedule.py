# SPDX-License-Identifier: Apache-2.0
"""Cron with a clock that is given: both edges of daylight saving in three zones, missed firings, clocks that jump."""

from __future__ import annotations

import datetime
import itertools
import threading
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.placement import Capacity
from open_autoglm.pipeline.triggers.schedule import MOST_MISSED, check_cron, check_timezone, due_firings, firings
from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook

UTC = datetime.UTC
# Zone, the night in which an hour is left out and the one in which it comes twice: first and last local time of it.
EDGES = [
    ("Europe/Berlin", datetime.date(2025, 3, 30), datetime.date(2025, 10, 26), 2, 2),
    ("America/New_York", datetime.date(2025, 3, 9), datetime.date(2025, 11, 2), 2, 1),
    ("Australia/Sydney", datetime.date(2025, 10, 5), datetime.date(2025, 4, 6), 2, 2),
]


def local(zone: str, day: datetime.date, hour: int, minute: int, fold: int = 0) -> datetime.datetime:
    return datetime.datetime(
        day.year, day.month, day.day, hour, minute, fold=fold, tzinfo=zoneinfo.ZoneInfo(zone)
    ).astimezone(UTC)


def fired_on(cron: str, zone: str, day: datetime.date) -> list[datetime.datetime]:
    """The firings from noon of the day before to noon of the day after."""
    start = local(zone, day - datetime.timedelta(days=1), 12, 0)
    end = local(zone, day + datetime.timedelta(days=1), 12, 0)
    found = []
    for moment in firings(cron, zone, start):
        if moment > end:
            return found
        found.append(moment)
    return found


def watched(cron: str, zone: str, day: datetime.date, step: int) -> list[datetime.datetime]:
    """The same, seen by a worker that looks every `step` seconds and remembers up to where it has looked."""
    now = local(zone, day - datetime.timedelta(days=1), 12, 0)
    end = local(zone, day + datetime.timedelta(days=1), 12, 0)
    found = []
    while now < end:
        following = min(now + datetime.timedelta(seconds=step), end)
        due, left_out = due_firings(cron, zone, now, following, "all")
        assert left_out == 0
        found += due
        now = following
    return found


@pytest.mark.parametrize(("zone", "short", "long", "gap", "fold"), EDGES, ids=[edge[0] for edge in EDGES])
def test_the_edges_of_daylight_saving(
    zone: str, short: datetime.date, long: datetime.date, gap: int, fold: int
) -> None:
    hour = datetime.timedelta(hours=1)
    # The zone does what the table says: the clock goes from gap:00 to gap+1:00, and at the end of the fold back to it.
    assert local(zone, short, gap + 1, 0) - local(zone, short, gap - 1, 59) == datetime.timedelta(minutes=1)
    assert local(zone, long, fold, 30, 1) - local(zone, long, fold, 30, 0) == hour
    before, after = (short + datetime.timedelta(days=days) for days in (-1, 1))

    # A time that is left out fires once, at the moment of the change.
    daily = fired_on(f"30 {gap} * * *", zone, short)
    assert daily == [local(zone, short, gap + 1, 0), local(zone, after, gap, 30)]
    # A time that comes twice fires once, the first time.
    twice = fired_on(f"30 {fold} * * *", zone, long)
    assert twice == [local(zone, long, fold, 30, 0), local(zone, long + datetime.timedelta(days=1), fold, 30)]
    # Every quarter of an hour is every quarter of an hour of real time, on both nights.
    for day, hours in ((short, 47), (long, 49)):
        quarters = fired_on("*/15 * * * *", zone, day)
        assert len(quarters) == hours * 4
        assert {second - first for first, second in itertools.pairwise(quarters)} == {hour / 4}
    # A time that no change touches stays what the clock on the wall says.
    assert fired_on("0 9 * * *", zone, short) == [local(zone, short, 9, 0), local(zone, after, 9, 0)]
    assert local(zone, before, 9, 0) - local(zone, after, 9, 0) == -datetime.timedelta(hours=47)
    # A worker that looks ever so often sees the same, none lost and none double.
    for cron, day in ((f"30 {gap} * * *", short), (f"30 {fold} * * *", long), (f"*/20 {fold} * * *", long)):
        for step in (601, 3600, 5399, 40_000):
            assert watched(cron, zone, day, step) == fired_on(cron, zone, day)


def test_days_weeks_and_months_against_a_plain_count() -> None:
    start = datetime.datetime(2024, 2, 27, 23, 59, tzinfo=UTC)
    minutes = [start + datetime.timedelta(minutes=number) for number in range(1, 60 * 24 * 40)]
    for cron, holds in {
        "0 0 29 2 *": lambda t: (t.minute, t.hour, t.day, t.month) == (0, 0, 29, 2),
        "*/30 8-17/3 * * 1-5": lambda t: t.minute % 30 == 0 and t.hour in (8, 11, 14, 17) and t.weekday() < 5,
        "5 4 1,15 * *": lambda t: (t.minute, t.hour) == (5, 4) and t.day in (1, 15),
        "0 12 1 * 0": lambda t: (t.minute, t.hour) == (0, 12) and (t.day == 1 or t.weekday() == 6),
    }.items():
        found = []
        for moment in firings(cron, "UTC", start):
            if moment > minutes[-1]:
                break
            found.append(moment)
        assert found == [moment for moment in minutes if holds(moment)], cron
        assert found


def test_what_was_missed() -> None:
    looked_at = datetime.datetime(2025, 1, 1, tzinfo=UTC)
    now = datetime.datetime(2025, 1, 1, 5, 20, tzinfo=UTC)
    hours = [looked_at + datetime.timedelta(hours=number) for number in range(1, 6)]
    assert due_firings("0 * * * *", "UTC", looked_at, now, "all") == (hours, 0)
    assert due_firings("0 * * * *", "UTC", looked_at, now, "once") == (hours[-1:], 4)
    assert due_firings("0 * * * *", "UTC", looked_at, now, "skip") == ([], 5)
    on_time = hours[-1] + datetime.timedelta(seconds=2)
    assert due_firings("0 * * * *", "UTC", looked_at, on_time, "once") == (hours[-1:], 4)
    assert due_firings("0 * * * *", "UTC", looked_at, on_time, "skip") == (hours[-1:], 4)
    assert due_firings("0 * * * *", "UTC", now, looked_at, "all") == ([], 0)  # a clock that was put back
    many, left_out = due_firings("* * * * *", "UTC", looked_at, looked_at + datetime.timedelta(days=1), "all")
    assert (len(many), left_out) == (MOST_MISSED, 1440 - MOST_MISSED)


@pytest.mark.parametrize("cron", ["", "* * * *", "* * * * * *", "61 * * * *", "* * * 13 *", "a * * * *", "0 0 31 2 *"])
def test_what_is_no_cron(cron: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not a cron|never fires"):
        check_cron(cron)


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "Europe/"])
def test_what_is_no_time_zone(name: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown time zone"):
        check_timezone(name)


def content(name: str, **trigger: Any) -> dict[str, Any]:
    return {"name": name, "stages": [{"stage": "a", "module": "m"}], "trigger": trigger}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(f"sqlite:///{tmp_path}/x.sqlite")
    yield journal
    journal.close()


START = datetime.datetime(2025, 6, 1, 0, 30, tzinfo=UTC)


def hours_later(hours: float) -> datetime.datetime:
    return START + datetime.timedelta(hours=hours)


def test_each_firing_starts_one_run_however_many_look(journal: Journal, tmp_path: Path) -> None:
    book = ScheduleBook(journal)
    assert book.put(content("p", cron="0 * * * *", missed="all"), START)
    assert not book.put(content("manual"), START)
    assert book.fire(str(tmp_path), START) == []

    def look() -> None:
        others = ScheduleBook(journal)
        for step in range(25):
            others.fire(str(tmp_path), hours_later(step / 4))

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = journal.list()
    assert len(runs) == 6
    assert {run.packet.payload["fired_at"] for run in runs} == {f"2025-06-01T0{hour}:00:00Z" for hour in range(1, 7)}
    assert book.fire(str(tmp_path), hours_later(2)) == []  # a clock that was put back
    assert len(book.fire(str(tmp_path), hours_later(8))) == 2


def test_a_pause_passes_firings_over_and_a_new_cron_starts_now(journal: Journal, tmp_path: Path) -> None:
    book = ScheduleBook(journal)
    book.put(content("p", cron="0 * * * *", missed="all"), START)
    book.pause("p", paused=True, now=hours_later(1))
    assert book.fire(str(tmp_path), hours_later(5)) == []
    assert book.put(content("p", cron="0 * * * *", missed="all"), hours_later(5))
    assert book.list()[0].paused
    book.pause("p", paused=False, now=hours_later(5))
    assert [one.moment.hour for one in book.fire(str(tmp_path), hours_later(6))] == [6]
    book.put(content("p", cron="30 * * * *", missed="all"), hours_later(9))
    assert [one.moment.hour for one in book.fire(str(tmp_path), hours_later(10))] == [10]
    assert not book.put(content("p"), hours_later(10))
    assert book.list() == []
    with pytest.raises(PipelineError, match="there is no schedule 'q'"):
        book.pause("q", paused=True)


def test_back_filling_starts_what_has_not_run(journal: Journal, tmp_path: Path) -> None:
    book = ScheduleBook(journal)
    book.put(content("p", cron="0 * * * *", missed="all"), START)
    assert len(book.fire(str(tmp_path), hours_later(2))) == 2
    filled = book.back_fill("p", START.replace(hour=0, minute=0), hours_later(4), str(tmp_path))
    assert [one.moment.hour for one in filled] == [0, 3, 4]  # 1 and 2 have had their runs
    assert book.back_fill("p", START, hours_later(4), str(tmp_path)) == []
    with pytest.raises(PipelineError, match="more than 10000 firings"):
        book.back_fill("p", START, hours_later(20_000), str(tmp_path))
    with pytest.raises(PipelineError, match="no cron schedule 'q'"):
        book.back_fill("q", START, hours_later(1), str(tmp_path))


def test_a_pipeline_follows_another_once_with_its_result(journal: Journal, tmp_path: Path) -> None:
    from open_autoglm.pipeline.packet import Packet

    book = ScheduleBook(journal)
    book.put(content("second", after="first"), START)
    run_id, _ = journal.submit(content("first"), None, folder=str(tmp_path))
    claim = journal.claim("me", 30.0, Capacity(2.0, 1, 0))
    assert claim is not None
    journal.end(claim, "done", None, Packet("s", {"count": 3}))
    (follower,) = journal.list("second")
    assert (follower.state, follower.packet.payload) == ("waiting", {"count": 3})
    failing, _ = journal.submit(content("first"), None, folder=str(tmp_path))
    claim = journal.claim("me", 30.0, Capacity(2.0, 1, 0), failing)
    assert claim is not None
    journal.end(claim, "failed", "no")
    assert len(journal.list("second")) == 1
    assert journal.get(run_id).state == "done"
