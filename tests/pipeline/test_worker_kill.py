# SPDX-License-Identifier: Apache-2.0
"""Workers that are killed, frozen, or two at once, on SQLite and on a real PostgreSQL: nothing lost, nothing double."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres_for_tests import postgres
from programs_for_tests import HERE, SOURCE, all_processes, command_of, is_alive, wait_until
from tests.thoroughness import times

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_records import DONE, RUNNING, ItemChange, LeaseLostError
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.placement import Capacity
from open_autoglm.pipeline.plan import ItemKey
from open_autoglm.pipeline.run_requests import ask
from open_autoglm.pipeline.specification import ForEachSpecification, PipelineSpecification, StageSpecification

CAPACITY = Capacity(2.0, 1 << 30, 0)
KILLS = times(3, 6)
StartWorker = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


ON_BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
ON_SQLITE = pytest.mark.parametrize(
    "database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.thorough)], indirect=True
)
"""What a worker does is the same on both; what the databases do for it is seen by the tests that run on both."""


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/pipelines.sqlite"
        return
    url = request.getfixturevalue("server")
    yield url
    from sqlalchemy import text

    journal = Journal(url)
    with journal.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    journal.close()


@pytest.fixture
def journal(database: str) -> Iterator[Journal]:
    journal = Journal(database)
    yield journal
    journal.close()


@pytest.fixture
def start(database: str, tmp_path: Path) -> Iterator[StartWorker]:
    made: list[subprocess.Popen[str]] = []

    def start_worker(*arguments: str, lease: float = 30.0, folder: Path = tmp_path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "worker_for_tests.py"), database, str(folder), str(lease), *arguments],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        return process

    yield start_worker
    for process in made:
        if process.poll() is None:
            process.kill()
        process.communicate()


def batches(seconds: float, count: int = 24) -> tuple[PipelineSpecification, Packet]:
    """A chain that sends records through a sink in batches of two, between two other stages."""
    stages = (
        StageSpecification("before", "append", (), {}),
        StageSpecification(
            "sink", "sink", ("before",), {"seconds": seconds}, for_each=ForEachSpecification("records", 2)
        ),
        StageSpecification("after", "append", ("sink",), {}),
    )
    return PipelineSpecification("batches", stages), Packet("s", {"records": [{"id": n} for n in range(count)]})


def sunk(folder: Path) -> list[int]:
    return sorted(int(line) for path in (folder / "sink").glob("*") for line in path.read_text().splitlines())


@ON_SQLITE
def test_killed_at_random_points_every_record_is_sunk_once(
    journal: Journal, start: StartWorker, tmp_path: Path
) -> None:
    specification, packet = batches(0.1)
    run_id, _ = journal.submit(specification.to_dict(), packet, folder=str(tmp_path))
    generator = random.Random(7)
    folder = tmp_path / run_id
    kills = 0
    while kills < KILLS and journal.get(run_id).state != "done":
        worker = start(run_id)
        if kills % 2:  # somewhere in the work of a stage
            known = _length(folder / "record.txt")
            wait_until(
                lambda known=known: _length(folder / "record.txt") > known or journal.get(run_id).state == "done"
            )
            time.sleep(generator.uniform(0.0, 0.2))
        else:  # anywhere: while it starts, continues, or works
            time.sleep(generator.uniform(0.2, 1.5))
        worker.kill()
        worker.wait()
        kills += 1
    assert kills >= KILLS - 2
    last = start(run_id)
    assert last.wait(120) == 0
    run = journal.get(run_id)
    assert run.state == "done"
    assert run.result is not None
    assert [record["id"] for record in run.result.payload["records"]] == list(range(24))
    assert sunk(folder) == list(range(24))
    changes = journal.transitions(run_id)
    done = Counter((one["stage"], one["number"]) for one in changes if one["state"] == "done")
    assert set(done.values()) == {1}
    assert len(done) == 12 + 2 + 1
    for key in done:
        starts = [
            one["attempt"] for one in changes if (one["stage"], one["number"]) == key and one["state"] == "running"
        ]
        if key[0] is not None:
            assert starts == list(range(1, len(starts) + 1))
    wait_until(lambda: not [pid for pid in all_processes() if str(tmp_path) in command_of(pid)], 5.0)


@ON_BOTH
def test_two_workers_share_what_there_is_and_neither_does_it_twice(
    journal: Journal, start: StartWorker, tmp_path: Path
) -> None:
    specification, packet = batches(0.02, 4)
    runs = [
        journal.submit(specification.to_dict(), packet, folder=str(tmp_path), key=f"{number % 8}")[0]
        for number in range(12)
    ]
    assert len(set(runs)) == 8
    workers = [start(), start()]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert {run.state for run in journal.list()} == {"done"}
    for run_id in set(runs):
        done = [one for one in journal.transitions(run_id) if one["state"] == "done"]
        assert len(done) == 2 + 2 + 1
        assert sum(f"run {run_id}: done" in output for output in outputs) == 1


@ON_SQLITE
def test_a_worker_that_freezes_and_wakes_commits_nothing(journal: Journal, start: StartWorker, tmp_path: Path) -> None:
    specification, packet = batches(0.5, 8)
    run_id, _ = journal.submit(specification.to_dict(), packet, folder=str(tmp_path))
    first = start(lease=2.0)
    folder = tmp_path / run_id
    wait_until(lambda: "start sink" in _text(folder / "record.txt"))
    frozen = [first.pid, *_descendants(first.pid)]
    assert len(frozen) >= 3
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    owner = journal.get(run_id).owner
    time.sleep(2.1)  # the lease is over; a worker that found nothing to do before that would end
    second = start(lease=2.0)
    wait_until(lambda: journal.get(run_id).owner not in (owner, None), 90.0)
    epoch = journal.get(run_id).epoch
    for pid in frozen:  # awake while the second is in the middle of it
        os.kill(pid, signal.SIGCONT)
    first_output, _ = first.communicate(timeout=120)
    assert second.wait(120) == 0
    run = journal.get(run_id)
    assert (run.state, run.epoch) == ("done", epoch)
    assert f"run {run_id}: let go" in first_output
    changes = journal.transitions(run_id)
    assert set(Counter((one["stage"], one["number"]) for one in changes if one["state"] == "done").values()) == {1}
    assert sunk(folder) == list(range(8))
    # What was begun twice was begun under the same key, and the later attempt is the one that counts.
    items = journal.items(run_id)
    attempts = [item.attempt for item in items.values()]
    assert max(attempts) == 2
    for item in items.values():
        assert (
            max(one["attempt"] for one in changes if _is_of(one, item.key) and one["state"] == "done") == item.attempt
        )


@ON_BOTH
def test_the_fence_refuses_old_claims_and_old_attempts(journal: Journal, tmp_path: Path) -> None:
    specification, packet = batches(0.0)
    run_id, _ = journal.submit(specification.to_dict(), packet, folder=str(tmp_path))
    key = ItemKey("before", 0)
    old = journal.claim("old", 0.2, CAPACITY)
    assert old is not None
    journal.commit(old, [ItemChange(key, RUNNING, 1)])
    assert journal.claim("new", 30.0, CAPACITY) is None
    time.sleep(0.3)
    new = journal.claim("new", 30.0, CAPACITY)
    assert new is not None
    assert (new.run_id, new.epoch) == (run_id, old.epoch + 1)
    with pytest.raises(LeaseLostError, match="another worker has the run"):
        journal.commit(old, [ItemChange(key, DONE, 1, output=[packet])])
    with pytest.raises(LeaseLostError):
        journal.control(old)
    with pytest.raises(LeaseLostError):
        journal.end(old, "done")
    assert journal.items(run_id)[key].state == "running"
    journal.commit(new, [ItemChange(key, RUNNING, 2)])
    with pytest.raises(LeaseLostError, match="another attempt"):  # all or nothing
        journal.commit(new, [ItemChange(ItemKey("after", 0), RUNNING, 1), ItemChange(key, DONE, 1, output=[packet])])
    assert journal.items(run_id)[ItemKey("after", 0)].attempt == 0
    journal.commit(new, [ItemChange(key, DONE, 2, output=[packet])])
    assert [one["state"] for one in journal.transitions(run_id) if one["stage"] == "before"] == [
        "waiting", "running", "running", "done"
    ]  # fmt: skip
    ask(journal, run_id, "cancel")
    assert journal.commit(new) == "cancel"
    journal.end(new, "cancelled")
    with pytest.raises(PipelineError, match="is cancelled"):
        ask(journal, run_id, "pause")


@ON_SQLITE
def test_stages_die_with_their_worker(journal: Journal, start: StartWorker, tmp_path: Path) -> None:
    specification = PipelineSpecification("p", (StageSpecification("a", "grandchildren", (), {}),))
    run_id, _ = journal.submit(specification.to_dict(), None, folder=str(tmp_path))
    worker = start(run_id)
    path = tmp_path / run_id / "pids.txt"
    wait_until(lambda: len(_text(path).split()) == 3)
    pids = [int(pid) for pid in _text(path).split()]
    worker.kill()
    worker.wait()
    wait_until(lambda: not [pid for pid in pids if is_alive(pid)], 3.0)


@ON_SQLITE
def test_stopped_politely_it_can_be_continued(journal: Journal, start: StartWorker, tmp_path: Path) -> None:
    specification = PipelineSpecification(
        "p",
        (
            StageSpecification("a", "append", (), {}),
            StageSpecification("b", "slow_step", ("a",), {"pieces": 10, "seconds": 0.2}),
        ),
    )
    run_id, _ = journal.submit(specification.to_dict(), None, folder=str(tmp_path))
    worker = start(run_id[:6])
    wait_until((tmp_path / run_id / "b.pieces").exists)
    worker.send_signal(signal.SIGINT)
    worker.wait(120)
    run = journal.get(run_id)
    assert (run.state, run.owner, run.reason) == ("waiting", None, "interrupted")
    assert [one["state"] for one in journal.transitions(run_id) if one["stage"] == "b"][-2:] == ["running", "waiting"]
    assert start(run_id).wait(120) == 0
    result = journal.get(run_id).result
    assert result is not None
    assert result.payload == {"a": 1, "numbers": [10]}
    assert [line.split()[:3] for line in _text(tmp_path / run_id / "record.txt").splitlines()][2:] == [
        ["start", "b", "1"], ["start", "b", "2"]
    ]  # fmt: skip


def _is_of(change: dict[str, object], key: ItemKey) -> bool:
    return (change["stage"], change["number"]) == (key.stage, key.number)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for process in all_processes():
        try:
            fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(process)
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
