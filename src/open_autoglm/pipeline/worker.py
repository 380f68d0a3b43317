# SPDX-License-Identifier: Apache-2.0
"""A worker: takes runs from the journal and conducts them, and starts those whose time has come."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from open_autoglm.errors import OpenAutoGLMError, PipelineError
from open_autoglm.pipeline.conductor import LOOK_SECONDS, Conductor
from open_autoglm.pipeline.executors import Executors
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_records import ENDED, WAITING, Claim, RunRecord
from open_autoglm.pipeline.placement import Capacity, Placement, machine_capacity
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook
from open_autoglm.pipeline.triggers.source import PipelineSource, start_runs
from open_autoglm.pipeline.warm_pool import WarmPool
from open_autoglm.pipeline.worker_book import BEAT_SECONDS, WorkerBook
from open_autoglm.pipeline.worker_lock import WorkerLock, is_gone

LEASE_SECONDS: Final = 30.0
"""For so long a worker that nobody hears of keeps its runs."""

_MOST_RUNS: Final = 64
_MOST_THREADS: Final = 128
_TICK_SECONDS: Final = 0.2
_SCHEDULE_SECONDS: Final = 1.0


class Worker:
    """Works on the runs of a journal, with the processes and slots of this machine. Close it at the end.

    folder: where runs have their folders. capacity: what stages may take; of this machine if None. lease: seconds.
    on_message: gets lines about what happens, from any thread.
    Raises StorageError when the disk or the database refuses.
    """

    def __init__(
        self,
        journal: Journal,
        catalog: StageCatalog,
        folder: Path,
        *,
        capacity: Capacity | None = None,
        lease: float = LEASE_SECONDS,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._journal, self._catalog, self._folder = journal, catalog, folder.resolve()
        self._lease, self._tell = lease, on_message
        self._lock = WorkerLock(self._folder)
        self._placement = Placement(capacity or machine_capacity())
        self._pool = Executors(WarmPool(idle=int(max(2, self._placement.capacity.cpu)), lock=self._lock.descriptor))
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="stage")
        self._conductors: dict[str, tuple[Conductor, threading.Event]] = {}
        self._faults: dict[str, OpenAutoGLMError] = {}
        self._troubles: dict[str, str] = {}

    @property
    def name(self) -> str:
        """Its name in the journal."""
        return self._lock.name

    def run(
        self,
        run_id: str,
        *,
        on_look: Callable[[], None] = lambda: None,
        on_wait: Callable[[str], None] = lambda reason: None,
    ) -> RunRecord:
        """Work on this run until it has ended or somebody has paused it; waits for its turn if it has to.

        on_look: called a few times a second meanwhile, in the calling thread. on_wait: called once if it has to wait.
        Raises PipelineError if a stage wants more than there is; StorageError when the journal cannot be written;
        KeyboardInterrupt after what ran has been stopped.
        """
        has_waited = False
        while True:
            record = self._journal.get(run_id)
            run_id = record.run_id  # it may have been the beginning of one
            if record.state in ENDED or (record.control == "pause" and record.owner is None):
                return record
            self._check_fit(record)
            claim = self._claim(record.run_id)
            if claim is not None:
                break
            if not has_waited:
                has_waited = True
                on_wait(
                    f"worker {record.owner} has it"
                    if record.owner
                    else "as many runs of it go on as its concurrency says"
                )
            on_look()
            time.sleep(LOOK_SECONDS)
        ended = self._begin(claim)
        try:
            while not ended.wait(LOOK_SECONDS):
                on_look()
        except BaseException:
            self._interrupt(run_id)
            raise
        finally:
            self._conductors.pop(run_id, None)
        if fault := self._faults.pop(run_id, None):
            raise fault
        return self._journal.get(run_id)

    def serve(self, stop: threading.Event, *, sources: Sequence[PipelineSource] = (), until_idle: bool = False) -> None:
        """Take whatever there is to do until `stop` is set, or with `until_idle` until there is nothing more.

        sources: what starts runs besides the schedule.
        """
        book, workers = ScheduleBook(self._journal), WorkerBook(self._journal)
        next_schedule = next_beat = 0.0
        started = 0
        while not stop.is_set():
            try:
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + BEAT_SECONDS
                    workers.beat(self.name)
                if time.monotonic() >= next_schedule:
                    next_schedule = time.monotonic() + _SCHEDULE_SECONDS
                    self._fire(book)
                    started = sum(self._ask(one) for one in sources)
                    if started:
                        next_schedule = 0.0  # there may be more
                claimed = self._take_runs()
            except OpenAutoGLMError as error:  # a database that is away for a moment comes back
                self._tell(f"warning: {error}")
                stop.wait(_SCHEDULE_SECONDS)
                continue
            self._forget_ended()
            if until_idle and not claimed and not started and not self._conductors:
                break
            stop.wait(_TICK_SECONDS)
        for run_id in list(self._conductors):
            self._interrupt(run_id)
        self._forget_ended()
        with contextlib.suppress(OpenAutoGLMError):  # then it is taken for gone in a while
            workers.leave(self.name)

    def close(self) -> None:
        """Stop what runs, end all processes, and let go of everything."""
        for run_id in list(self._conductors):
            self._interrupt(run_id)
        self._threads.shutdown()
        self._pool.close()
        self._lock.release()

    def _fire(self, book: ScheduleBook) -> None:
        for firing in book.fire(str(self._folder)):
            missed = f", {firing.left_out} missed firings left out" if firing.left_out else ""
            self._tell(f"{firing.pipeline}: run {firing.run_id} for {firing.moment:%Y-%m-%d %H:%M} UTC{missed}")

    def _ask(self, one: PipelineSource) -> int:
        """Start runs for what a source has, and count them; one that is away is said once, and holds nobody up."""
        name = one.content["name"]
        try:
            run_ids = start_runs(self._journal, one, str(self._folder))
        except OpenAutoGLMError as error:
            if self._troubles.get(name) != str(error):
                self._troubles[name] = str(error)
                self._tell(f"warning: {name}: {error}")
            return 0
        if self._troubles.pop(name, None):
            self._tell(f"{name}: what was away answers again")
        for run_id in run_ids:
            self._tell(f"{name}: run {run_id} for what has arrived")
        return len(run_ids)

    def _take_runs(self) -> int:
        claimed = 0
        while len(self._conductors) < _MOST_RUNS:
            claim = self._claim()
            if claim is None:
                break
            claimed += 1
            self._begin(claim)
        return claimed

    def _claim(self, run_id: str | None = None) -> Claim | None:
        self._journal.release_gone(lambda owner: owner != self.name and is_gone(self._folder, owner))
        return self._journal.claim(self.name, self._lease, self._placement.capacity, run_id)

    def _begin(self, claim: Claim) -> threading.Event:
        """Conduct a run in a thread; the event is set when that has ended.

        Not joined by the thread itself: a signal during `Thread.join` makes Python 3.11 believe that it has ended.
        """
        ended = threading.Event()
        conductor = Conductor(self._journal, claim, self._catalog, self._pool, self._placement, threads=self._threads)
        thread = threading.Thread(
            target=self._conduct, args=(claim, conductor, ended), name=f"run-{claim.run_id}", daemon=True
        )
        self._conductors[claim.run_id] = (conductor, ended)
        thread.start()
        return ended

    def _conduct(self, claim: Claim, conductor: Conductor, ended: threading.Event) -> None:
        try:
            state = conductor.run()
            self._tell(f"run {claim.run_id}: {'let go' if state == WAITING else state}")
        except OpenAutoGLMError as error:
            self._faults[claim.run_id] = error
        except Exception as error:  # noqa: BLE001 - a fault of ours in one run must not end the others
            self._faults[claim.run_id] = PipelineError(f"internal error: {type(error).__name__}: {error}")
        finally:
            ended.set()

    def _forget_ended(self) -> None:
        for run_id, (_, ended) in list(self._conductors.items()):
            if ended.is_set():
                del self._conductors[run_id]
                if fault := self._faults.pop(run_id, None):
                    self._tell(f"warning: run {run_id}: {fault}")

    def _interrupt(self, run_id: str) -> None:
        known = self._conductors.get(run_id)
        if known is not None:
            known[0].interrupt()
            known[1].wait()

    def _check_fit(self, record: RunRecord) -> None:
        capacity = self._placement.capacity
        for stage in record.specification.stages:
            if not capacity.fits(stage.resources.of_worker):
                wanted = stage.resources
                raise PipelineError(
                    f"stage '{stage.stage}' wants {wanted.cpu:g} cpu, {wanted.memory / 1e9:g} GB and {wanted.gpu} gpu; "
                    f"here are {capacity.cpu:g} cpu, {capacity.memory / 1e9:.1f} GB and {capacity.gpu} gpu"
                )
