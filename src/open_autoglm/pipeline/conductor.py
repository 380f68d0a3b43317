# SPDX-License-Identifier: Apache-2.0
"""Conducts one run: starts what can be started, records what came of it, and holds nothing that matters itself.

One thread, one loop: take what has happened (slots granted, attempts ended, waits over), see what that makes possible,
and record it all in one transaction before anything new begins. So a chain of stages costs one transaction a stage,
and many branches share one. Whatever moment the process dies at, the journal says where to go on.
"""

from __future__ import annotations

import heapq
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from open_autoglm.errors import OpenAutoGLMError, PipelineError
from open_autoglm.pipeline.attempt import StopSignal, error_of
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_records import (
    CANCELLED,
    DONE,
    FAILED,
    RETRIED,
    RUNNING,
    WAITING,
    Claim,
    ItemChange,
    ItemRecord,
    LeaseLostError,
    RunRecord,
)
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.placement import Placement
from open_autoglm.pipeline.plan import ItemKey, RunPlan, WorkItem
from open_autoglm.pipeline.specification import PipelineSpecification
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.warm_pool import Attempt, AttemptOutcome

LOOK_SECONDS: Final = 0.3
"""How often a conductor that has nothing else to do looks whether somebody wants something."""

MOST_LOSSES: Final = 3
"""So often an attempt may be lost with its machine before that counts as a failure of the stage."""

_LOSS_SECONDS: Final = 1.0
_PASSED: Final = "the condition did not hold"


class AttemptRunner(Protocol):
    """What runs an attempt, such as `WarmPool`."""

    def run(self, attempt: Attempt, stop: StopSignal) -> AttemptOutcome:
        """Run it and wait for its end; says what came of it and raises nothing."""
        ...


@dataclass
class _Item:
    """What the conductor remembers about an item that is not done."""

    work: WorkItem
    attempt: int
    failures: int
    generation: int
    losses: int = 0


@dataclass
class _Loop:
    """What one turn of the loop has gathered: what to record, and what to start once it is recorded."""

    changes: list[ItemChange] = field(default_factory=list)
    opened: list[ItemKey] = field(default_factory=list)
    to_start: list[_Item] = field(default_factory=list)


class Conductor:
    """Conducts the run of a claim.

    pool: runs the attempts, in threads of `threads`. chance: from 0 to 1, for the jitter of waits.
    """

    def __init__(
        self,
        journal: Journal,
        claim: Claim,
        catalog: StageCatalog,
        pool: AttemptRunner,
        placement: Placement,
        *,
        threads: Executor,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._journal, self._claim, self._catalog = journal, claim, catalog
        self._pool, self._placement, self._threads = pool, placement, threads
        self._chance = chance
        self._inbox: queue.SimpleQueue[tuple[_Item, AttemptOutcome | None]] = queue.SimpleQueue()
        self._stop_attempts: StopSignal | None = None
        self._interrupted = threading.Event()
        self._known: dict[ItemKey, ItemRecord] = {}
        self._wakes: list[tuple[float, int, _Item]] = []
        self._running: set[ItemKey] = set()
        self._asked_for = 0
        self._failure: tuple[str, OpenAutoGLMError] | None = None
        self._turn = _Loop()
        self._renewed = 0.0
        self._control = ""

    def interrupt(self) -> None:
        """Stop what runs and let go of the run, which stays as it is; may be called from any thread."""
        self._interrupted.set()
        self._inbox.put((_NOTHING, None))

    def run(self) -> str:
        """Conduct until the run has ended, or somebody paused it or took it over; returns its state.

        Raises StorageError when the journal cannot be written any more; everything has been stopped then.
        """
        record = self._journal.get(self._claim.run_id)
        stop = self._stop_attempts = StopSignal()
        try:
            return self._run(record)
        except LeaseLostError:
            return WAITING
        finally:
            self._placement.withdraw(self)
            stop.set()
            self._drain()
            stop.close()

    def _run(self, record: RunRecord) -> str:
        self._record = record
        self._folder = Path(record.folder)
        self._cursors = self._journal.cursors(record.pipeline)
        self._known = self._journal.items(record.run_id)
        specification = record.specification
        if fault := self._unknown_module(specification):
            self._journal.end(self._claim, FAILED, fault)
            return FAILED
        recorded = {
            key: [Packet.from_dict(packet) for packet in item.output]
            for key, item in self._known.items()
            if item.state == DONE and item.output is not None
        }
        first = record.packet
        first = first.with_payload(first.payload, trace_id=record.trace_id)
        self._plan = RunPlan(specification, first, recorded, on_passed=self._on_passed)
        self._needs = specification.needs
        self._open_stages()
        while True:
            self._take_what_happened()
            self._commit()
            if self._control in ("cancel", "pause") or self._failure or self._interrupted.is_set():
                break
            self._start()
            if self._plan.is_done and not self._turn.changes:
                self._journal.end(self._claim, DONE, None, self._plan.result())
                return DONE
        return self._wind_up()

    def _unknown_module(self, specification: PipelineSpecification) -> str | None:
        for stage in specification.stages:
            try:
                self._catalog.target(stage.module)
            except PipelineError as error:
                return f"stage '{stage.stage}': {error}"
        return None

    def _open_stages(self) -> None:
        """Ask for slots for everything that has become possible."""
        try:
            work = self._plan.open_stages()
        except OpenAutoGLMError as error:
            self._failure = self._failure or ("", error)
            return
        for one in work:
            self._ask_for_slot(self._remembered(one))

    def _remembered(self, work: WorkItem) -> _Item:
        known = self._known.get(work.key)
        if known is None:
            self._turn.opened.append(work.key)
            return _Item(work, 0, 0, self._generation_of(work.key.stage))
        return _Item(work, known.attempt, known.failures, known.generation)

    def _generation_of(self, stage: str) -> int:
        first = self._known.get(ItemKey(stage, 0))
        return 0 if first is None else first.generation

    def _ask_for_slot(self, item: _Item) -> None:
        known = self._known.get(item.work.key)
        if known is not None and known.wake is not None and item.attempt == known.attempt:
            wait = known.wake - time.time()
            if wait > 0:
                self._sleep(item, wait)
                return
        self._request(item)

    def _sleep(self, item: _Item, seconds: float) -> None:
        self._asked_for += 1
        heapq.heappush(self._wakes, (time.monotonic() + seconds, self._asked_for, item))

    def _request(self, item: _Item) -> None:
        self._placement.request(
            self, item.work.stage.resources.of_worker, self._record.priority, lambda: self._inbox.put((item, None))
        )

    def _on_passed(self, key: ItemKey, packet: Packet) -> None:
        """The condition of an item does not hold: it is done with the packet that came in."""
        known = self._known.get(key)
        if known is None:
            self._turn.opened.append(key)
        attempt = 0 if known is None else known.attempt
        self._turn.changes.append(ItemChange(key, DONE, attempt, output=[packet], reason=_PASSED))

    def _take_what_happened(self) -> None:
        """Wait for something, then take all that there is."""
        self._wake_sleepers()
        patience: float | None = 0.0 if self._turn.changes or self._turn.opened else LOOK_SECONDS
        if patience and self._wakes:
            patience = min(patience, max(0.0, self._wakes[0][0] - time.monotonic()))
        if self._plan.is_done:
            patience = 0.0
        while True:
            try:
                item, outcome = self._inbox.get(timeout=patience) if patience else self._inbox.get_nowait()
            except queue.Empty:
                return
            patience = 0.0
            if item is _NOTHING:
                continue
            if outcome is None:
                self._turn.to_start.append(item)
            else:
                self._take_outcome(item, outcome)

    def _wake_sleepers(self) -> None:
        while self._wakes and self._wakes[0][0] <= time.monotonic():
            self._request(heapq.heappop(self._wakes)[2])

    def _take_outcome(self, item: _Item, outcome: AttemptOutcome) -> None:
        key = item.work.key
        self._running.discard(key)
        self._placement.release(item.work.stage.resources.of_worker)
        if outcome.packets is not None:
            packets = [Packet.from_dict(packet) for packet in outcome.packets]
            cursor = outcome.cursor or {}
            self._turn.changes.append(
                ItemChange(
                    key,
                    DONE,
                    item.attempt,
                    output=packets,
                    cursor=cursor.get("value"),
                    has_cursor="value" in cursor,
                )
            )
            if self._plan.finish(key, packets):
                self._open_stages()
        elif outcome.failure is not None:
            self._take_failure(item, outcome.failure)
        else:
            self._turn.changes.append(ItemChange(key, WAITING, item.attempt, item.failures, reason="stopped"))

    def _take_failure(self, item: _Item, failure: Mapping[str, Any]) -> None:
        stage, key = item.work.stage, item.work.key
        reason = str(failure["message"])
        if failure.get("lost") and item.losses < MOST_LOSSES:  # a machine that dies is no fault of the stage
            item.losses += 1
            self._try_again(item, reason, _LOSS_SECONDS)
            return
        item.failures += 1
        if failure["permanent"] or item.failures >= stage.retry.attempts:
            error = error_of(stage.stage, dict(failure), item.failures)
            self._turn.changes.append(
                ItemChange(key, FAILED, item.attempt, item.failures, reason=str(error), failure=failure)
            )
            self._failure = self._failure or (stage.stage, error)
            return
        self._try_again(item, reason, stage.retry.jittered_seconds(item.failures, self._chance()))

    def _try_again(self, item: _Item, reason: str, wait: float) -> None:
        self._turn.changes.append(
            ItemChange(item.work.key, RETRIED, item.attempt, item.failures, reason=reason, wake=time.time() + wait)
        )
        self._sleep(item, wait)

    def _commit(self) -> None:
        """Record everything of this turn, or renew the lease when it is time, or just look what is asked for."""
        turn = self._turn
        started = [ItemChange(item.work.key, RUNNING, item.attempt + 1, item.failures) for item in turn.to_start]
        now = time.monotonic()
        if turn.changes or turn.opened or started:
            self._control = self._journal.commit(self._claim, [*turn.changes, *started], turn.opened)
            self._renewed = now
        elif now - self._renewed >= self._claim.lease / 3:
            self._control = self._journal.commit(self._claim)
            self._renewed = now
        else:
            self._control = self._journal.control(self._claim)
        for item in turn.to_start:
            item.attempt += 1
        self._turn = _Loop(to_start=turn.to_start)

    def _start(self) -> None:
        for item in self._turn.to_start:
            self._running.add(item.work.key)
            self._threads.submit(self._attempt, item)
        self._turn.to_start = []

    def _attempt(self, item: _Item) -> None:
        """Runs in a thread of its own."""
        stage, key = item.work.stage, item.work.key
        stop = self._stop_attempts
        assert stop is not None
        suffix = f"#{item.generation}" if item.generation else ""
        try:
            outcome = self._pool.run(
                Attempt(
                    target=self._catalog.target(stage.module),
                    folder=self._folder,
                    stage=stage.stage,
                    number=key.number,
                    attempt=item.attempt,
                    idempotency_key=f"{self._record.run_id}/{stage.stage}/{key.number}{suffix}",
                    config=stage.config,
                    packet=item.work.packet.to_dict(),
                    needs=self._needs[stage.stage],
                    timeout_seconds=stage.timeout_seconds,
                    trace_id=self._record.trace_id,
                    cursor=self._cursors.get(stage.stage),
                    resources=stage.resources,
                ),
                stop,
            )
        except Exception as error:  # noqa: BLE001 - the loop must hear of every end
            message = f"it could not be run: {type(error).__name__}: {error}"
            outcome = AttemptOutcome(failure={"types": [], "message": message, "permanent": True})
        self._inbox.put((item, outcome))

    def _wind_up(self) -> str:
        """End as asked for: nothing new is begun; what runs is finished on a failure or a pause, else stopped."""
        stop = self._stop_attempts
        if stop is not None and (self._control == "cancel" or self._interrupted.is_set()):
            stop.set()
        self._placement.withdraw(self)
        for item in self._turn.to_start:  # recorded as running, but not begun
            self._inbox.put((item, AttemptOutcome()))
            self._running.add(item.work.key)
        self._turn.to_start = []
        while self._running:
            self._take_what_happened()
            for item in self._turn.to_start:
                self._placement.release(item.work.stage.resources.of_worker)
            self._turn.to_start = []
            self._commit()
            if stop is not None and (self._control == "cancel" or self._interrupted.is_set()):
                stop.set()
        if self._control == "cancel":
            self._journal.end(self._claim, CANCELLED)
            return CANCELLED
        if self._failure is not None:
            self._journal.end(self._claim, FAILED, str(self._failure[1]))
            return FAILED
        paused = self._control == "pause" and not self._interrupted.is_set()
        self._journal.end(self._claim, WAITING, "paused" if paused else "interrupted")
        return WAITING

    def _drain(self) -> None:
        """Wait for the attempts that still run, and give back their slots, after something went wrong."""
        granted = list(self._turn.to_start)
        while True:
            try:
                item, outcome = self._inbox.get(timeout=LOOK_SECONDS) if self._running else self._inbox.get_nowait()
            except queue.Empty:
                if self._running:
                    continue
                break
            if item is _NOTHING:
                continue
            if outcome is None:
                granted.append(item)
            else:
                self._running.discard(item.work.key)
                self._placement.release(item.work.stage.resources.of_worker)
        for item in granted:
            self._placement.release(item.work.stage.resources.of_worker)


_NOTHING: Final[Any] = object()
"""Put into the inbox to wake the conductor."""
