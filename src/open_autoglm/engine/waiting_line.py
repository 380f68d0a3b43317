# SPDX-License-Identifier: Apache-2.0
"""`WaitingLine`: orders that are prepared when the engine will soon have room for them, and not before."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from typing import Final

from open_autoglm.engine.scheduler import PRIORITY_SPAN

_LOOK_SECONDS: Final = 0.02
"""So long after room has come a waiting order may be taken at the latest; `wake` makes it sooner."""


class WaitingLine:
    """Work that waits for room, the most urgent first; a few threads take it.

    Thousands of orders that come at once would otherwise all be tokenised and have their guides compiled while the
    engine waits for the interpreter, and hold up to half a megabyte each until their turn. A level of priority counts
    as having come `PRIORITY_SPAN` orders earlier, as in the scheduler.
    has_room: whether more may be taken; called from several threads. threads: that take work.
    """

    def __init__(self, has_room: Callable[[], bool], threads: int, name: str) -> None:
        self._has_room = has_room
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._arrivals = 0
        for index in range(threads):
            threading.Thread(target=self._take, name=f"{name}-{index}", daemon=True).start()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Callable[[], None], priority: int = 0) -> None:
        """Have work done when there is room. priority: a lower number goes first. work: must not raise."""
        with self._changed:
            self._arrivals += 1
            heapq.heappush(self._waiting, (self._arrivals + priority * PRIORITY_SPAN, self._arrivals, work))
            self._changed.notify()

    def wake(self) -> None:
        """Room may have come."""
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    def _take(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting and self._has_room()):
                    self._changed.wait(_LOOK_SECONDS if self._waiting else None)
                work = heapq.heappop(self._waiting)[2]
            work()
