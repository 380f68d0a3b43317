# SPDX-License-Identifier: Apache-2.0
"""Pipelines whose program is killed, stopped, frozen, doubled or out of disk: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from programs_for_tests import HERE, SOURCE, Program, is_alive, stage, wait_until
from tests.thoroughness import times

from open_autoglm.errors import RunLockedError
from open_autoglm.pipeline import read_events
from open_autoglm.storage import FolderLock

MakeProgram = Callable[..., Program]
KILLS = times(3, 10)


def test_killed_at_random_points_it_ends_like_an_undisturbed_run(program: MakeProgram, tmp_path: Path) -> None:
    def steps(pieces: int, **needs: tuple[str, ...]) -> list:
        return [
            stage(name, "slow_step", needs[name], pieces=pieces, seconds=0.1, factor=number + 1)
            for number, name in enumerate(needs)
        ]

    # The diamond joins at the end: its payload is that of the two branches by name.
    graph = {"a": (), "b": ("a",), "c": ("a",), "d": ("b",), "e": ("d",), "f": ("e",), "g": ("f", "c")}
    undisturbed = program(*steps(4, **graph), folder=tmp_path / "undisturbed")
    undisturbed_process = undisturbed.start()
    killed = program(*steps(4, **graph), folder=tmp_path / "killed")
    generator = random.Random(20250101)
    finished: dict[str, tuple[int, int]] = {}
    for kill in range(KILLS):
        process = killed.start()
        if kill % 2:  # somewhere in the work of a stage
            known = len(killed.records())
            wait_until(lambda known=known: len(killed.records()) > known)
            time.sleep(generator.uniform(0.0, 0.3))
        else:  # anywhere: while the program starts, continues, or works
            time.sleep(generator.uniform(0.1, 1.7))
        assert process.poll() is None, "it ended before it was killed as often as it should"
        process.kill()
        process.communicate()
        wait_until(lambda: not killed.stage_processes(), 3.0)
        assert not [record for record in killed.records() if is_alive(int(record[3]))]
        for output in (killed.folder / "stages").glob("*/output.json"):
            identity = (output.stat().st_ino, output.stat().st_mtime_ns)
            assert finished.setdefault(output.parent.name, identity) == identity, "a finished stage ran again"
    code, result, errors = killed.finish()
    expected, complaints = undisturbed_process.communicate(timeout=30)
    assert (code, result) == (0, json.loads(expected))
    assert errors == complaints == ""
    for name, identity in finished.items():
        output = killed.folder / "stages" / name / "output.json"
        assert (output.stat().st_ino, output.stat().st_mtime_ns) == identity
    events = read_events(killed.folder)
    assert Counter(event["stage"] for event in events if event.get("state") == "done") == dict.fromkeys(
        [*graph, None], 1
    )
    pieces = Counter((event["stage"], event["piece"]) for event in events if "piece" in event)
    assert set(pieces) == {(name, piece) for name in graph for piece in (1, 2, 3, 4)}
    attempts = Counter(record[1] for record in killed.records())
    # Some stages were cut off, and never more than the two that run side by side.
    assert len(graph) + KILLS // 3 <= sum(attempts.values()) <= len(graph) + 2 * KILLS
    for name in graph:
        starts = [event["attempt"] for event in events if event["stage"] == name and event.get("state") == "running"]
        assert starts == list(range(1, len(starts) + 1))


def test_a_kill_during_the_wait_for_the_next_attempt_keeps_the_count(program: MakeProgram) -> None:
    one = program(stage("a", "fail_until", attempt=3, attempts=3, backoff_seconds=0.3))
    process = one.start()
    wait_until(lambda: [event for event in read_events(one.folder) if event.get("state") == "retried"])
    process.kill()
    process.wait()
    code, result, _ = one.finish()
    assert (code, result["payload"]["a"]) == (0, 3)
    assert len(one.records()) == 3


def test_the_whole_process_tree_dies_with_the_program(program: MakeProgram) -> None:
    one = program(stage("a", "grandchildren"))
    process = one.start()
    pids = [int(pid) for pid in wait_until(lambda: _words(one.folder / "pids.txt", 3))]
    process.kill()
    process.wait()
    wait_until(lambda: not [pid for pid in pids if is_alive(pid)], 3.0)
    wait_until(lambda: not one.stage_processes(), 3.0)
    FolderLock(one.folder).acquire(patience=0.5)


def test_stopped_politely_it_can_be_continued(program: MakeProgram) -> None:
    one = program(stage("a", "append"), stage("b", "slow_step", pieces=6, seconds=0.15))
    for number in (signal.SIGINT, signal.SIGTERM):
        known = _pieces(one)
        process = one.start()
        wait_until(lambda known=known: _pieces(one) > known)
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, output, errors) == (130, '{"error": "KeyboardInterrupt"}\n', "")
        assert not one.stage_processes()
        assert read_events(one.folder)[-1]["state"] == "interrupted"
    code, result, _ = one.finish()
    assert (code, result["payload"]) == (0, {"numbers": [6], "a": 1})
    assert _pieces(one) == dict.fromkeys(range(1, 7), 1)


def test_a_second_program_on_the_folder_is_told_who_has_it(program: MakeProgram) -> None:
    one = program(stage("a", "append", seconds=1.5))
    first = one.start()
    wait_until(one.records)
    code, answer, _ = one.finish("0.2")
    assert (code, answer["error"]) == (7, "RunLockedError")
    assert f"process {first.pid}" in answer["message"]
    assert "run_for_tests.py" in answer["message"]
    output, _ = first.communicate(timeout=30)
    assert '"a": 1' in output
    assert len(one.records()) == 2


def test_the_folder_stays_locked_until_the_last_child_has_ended(program: MakeProgram) -> None:
    one = program(stage("a", "append", seconds=30.0))
    process = one.start()
    wait_until(one.records)
    children = one.stage_processes()
    assert len(children) == 2
    guard = min(children)
    os.kill(guard, signal.SIGSTOP)  # it hears nothing now
    process.kill()
    process.wait()
    with pytest.raises(RunLockedError):
        FolderLock(one.folder).acquire(patience=0.3)
    os.kill(guard, signal.SIGCONT)
    lock = FolderLock(one.folder)
    lock.acquire(patience=3.0)
    lock.release()
    assert not one.stage_processes()


def test_a_guard_that_is_killed_takes_its_worker_along(program: MakeProgram) -> None:
    one = program(stage("a", "fail_until", attempt=2, attempts=2), stage("b", "append", seconds=1.0, attempts=2))
    process = one.start()
    wait_until(lambda: [record for record in one.records() if record[1] == "b"])
    worker = int(one.records()[-1][3])
    os.kill(next(pid for pid in one.stage_processes() if pid != worker), signal.SIGKILL)
    wait_until(lambda: not is_alive(worker), 1.0)
    output, _ = process.communicate(timeout=30)
    assert '"b": 1' in output


def test_no_network_and_nothing_on_the_terminal(program: MakeProgram) -> None:
    one = program(stage("a", "fail_until", attempt=2, attempts=2))
    code, result, errors = one.finish(WATCH_NETWORK="1")
    assert (code, result["network"], errors) == (0, [], "")


@pytest.mark.parametrize("filled", [255, 150], ids=["while-dbos-starts", "while-a-stage-runs"])
def test_a_full_disk_is_named_and_the_run_continues_when_there_is_room(
    program: MakeProgram, tmp_path: Path, filled: int
) -> None:
    """On a disk of 500 kB, of which DBOS's file takes 220 and the events 120; room is made later."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("cannot mount a file system here")
    disk = tmp_path / "disk"
    disk.mkdir()
    specification = program(stage("a", "append"), stage("b", "slow_step", pieces=2000, seconds=0.0)).specification
    command = f"{sys.executable} {HERE / 'run_for_tests.py'} {specification} {disk / 'run'}"
    script = (
        f"mount -t tmpfs -o size=500k none {disk}; head -c {filled}k /dev/zero > {disk}/filler;"
        f"{command}; echo $?; rm {disk}/filler; {command}; echo $?; cat {disk}/run/record.txt >&2"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = ran.stdout.splitlines()
    assert '"error": "StorageError"' in lines[0], ran
    assert "disk is full" in lines[0]
    assert "continues where it stopped" in lines[0]
    assert '"numbers": [2000]' in lines[2], ran
    assert (lines[1], lines[3]) == ("6", "0")
    record = [line.rsplit(" ", 1)[0] for line in ran.stderr.splitlines()]
    again = ["start b 2"] if filled == 150 else []
    assert record == ["start a 1", "end a 1", "start b 1", *again]


def _pieces(one: Program) -> Counter[int]:
    """How often each piece of a stage was said to be done."""
    return Counter(event["piece"] for event in read_events(one.folder) if "piece" in event)


def _words(path: Path, number: int) -> list[str]:
    words = path.read_text().split() if path.exists() else []
    return words if len(words) == number else []
