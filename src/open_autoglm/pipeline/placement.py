# SPDX-License-Identifier: Apache-2.0
"""Who may run now: slots of CPU, memory and GPU, given to the most urgent first."""

from __future__ import annotations

import heapq
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.pipeline.specification import ResourceSpecification

_EPSILON: Final = 1e-9


@dataclass(frozen=True)
class Capacity:
    """What a worker has to give. cpu: cores. memory: bytes. gpu: whole ones."""

    cpu: float
    memory: int
    gpu: int

    def fits(self, wanted: ResourceSpecification) -> bool:
        """Whether a stage that wants this could ever run here."""
        return wanted.cpu <= self.cpu + _EPSILON and wanted.memory <= self.memory and wanted.gpu <= self.gpu


def machine_capacity() -> Capacity:
    """This machine's: at least two cores, since a stage may well wait for a disk or a network."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = len([entry for entry in Path("/dev").glob("nvidia[0-9]*") if entry.name.removeprefix("nvidia").isdigit()])
    return Capacity(float(max(2, cores)), memory, gpus)


@dataclass(order=True)
class _Waiting:
    rank: tuple[int, int]
    wanted: ResourceSpecification
    granted: Callable[[], None]
    token: object


class Placement:
    """Gives slots out. Thread-safe; the callbacks run in whatever thread made the room, and must be quick.

    The most urgent that waits comes first, and among equals who came first. One that does not fit yet holds back what
    is less urgent than it, and what came later: a large stage is not starved by small ones. Nothing that runs is ever
    stopped for something more urgent.
    """

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._cpu, self._memory, self._gpu = capacity.cpu, capacity.memory, capacity.gpu
        self._waiting: list[_Waiting] = []
        self._count = 0
        self._lock = threading.Lock()

    def request(self, token: object, wanted: ResourceSpecification, priority: int, granted: Callable[[], None]) -> None:
        """Ask for a slot; `granted` is called when it is there. Give it back with `release`."""
        with self._lock:
            self._count += 1
            heapq.heappush(self._waiting, _Waiting((-priority, self._count), wanted, granted, token))
        self._give()

    def withdraw(self, token: object) -> int:
        """Take back what was asked for under this token and not given yet; returns how many that were."""
        with self._lock:
            kept = [waiting for waiting in self._waiting if waiting.token is not token]
            withdrawn = len(self._waiting) - len(kept)
            self._waiting = kept
            heapq.heapify(self._waiting)
        self._give()
        return withdrawn

    def release(self, wanted: ResourceSpecification) -> None:
        """A slot that was given is free again."""
        with self._lock:
            self._cpu += wanted.cpu
            self._memory += wanted.memory
            self._gpu += wanted.gpu
        self._give()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is given out and nobody waits."""
        with self._lock:
            whole = abs(self._cpu - self.capacity.cpu) < _EPSILON
            rest = (self._memory, self._gpu) == (self.capacity.memory, self.capacity.gpu)
            return whole and rest and not self._waiting

    def _give(self) -> None:
        given: list[Any] = []
        with self._lock:
            while self._waiting:
                wanted = self._waiting[0].wanted
                if wanted.cpu > self._cpu + _EPSILON or wanted.memory > self._memory or wanted.gpu > self._gpu:
                    break
                self._cpu -= wanted.cpu
                self._memory -= wanted.memory
                self._gpu -= wanted.gpu
                given.append(heapq.heappop(self._waiting).granted)
        for granted in given:
            granted()
