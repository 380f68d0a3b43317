# SPDX-License-Identifier: Apache-2.0
"""Orders that wait for room: in their order, the urgent ones first, none lost."""

import threading
import time

from open_autoglm.engine.scheduler import PRIORITY_SPAN
from open_autoglm.engine.waiting_line import WaitingLine


def wait_until_empty(line: WaitingLine, done: list[str], count: int) -> None:
    until = time.monotonic() + 20
    while (len(line) or len(done) < count) and time.monotonic() < until:
        time.sleep(0.005)


def test_work_waits_for_room_and_the_urgent_goes_first() -> None:
    done: list[str] = []
    room = threading.Event()
    line = WaitingLine(room.is_set, 1, "line")
    line.add(lambda: done.append("first"))
    line.add(lambda: done.append("second"))
    line.add(lambda: done.append("urgent"), priority=-1)
    line.add(lambda: done.append("late"), priority=1)
    line.add(lambda: done.append("third"))
    time.sleep(0.1)
    assert not done
    assert len(line) == 5
    room.set()
    line.wake()
    wait_until_empty(line, done, 5)
    assert done == ["urgent", "first", "second", "third", "late"]


def test_priority_gives_a_start_of_so_many_orders_and_no_more() -> None:
    done: list[str] = []
    room = threading.Event()
    line = WaitingLine(room.is_set, 1, "line")
    line.add(lambda: done.append("patient"), priority=1)
    for number in range(2 * PRIORITY_SPAN):
        line.add(lambda name=str(number): done.append(name))
    room.set()
    line.wake()
    wait_until_empty(line, done, 2 * PRIORITY_SPAN + 1)
    assert abs(done.index("patient") - PRIORITY_SPAN) <= 1


def test_room_is_never_exceeded_and_nothing_is_lost_with_several_threads() -> None:
    lock, done = threading.Lock(), list[str]()
    most = in_work = 0
    line = WaitingLine(lambda: in_work < 3, 2, "line")

    def begin(name: str) -> None:
        nonlocal in_work, most
        with lock:
            in_work += 1
            most = max(most, in_work)
            done.append(name)

    for number in range(300):
        line.add(lambda name=str(number): begin(name))
    until = time.monotonic() + 20
    while len(done) < 300 and time.monotonic() < until:
        with lock:
            in_work = max(0, in_work - 1)
        line.wake()
        time.sleep(0.0005)
    assert sorted(map(int, done)) == list(range(300))
    assert most <= 4  # two threads may each see the last room
