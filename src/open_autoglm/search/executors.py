# SPDX-License-Identifier: Apache-2.0
"""Where trials run: in this process, or several at a time in processes of their own; Ray's is in `ray_executor.py`."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from open_autoglm import errors
from open_autoglm.errors import ConfigurationError, TrainingError
from open_autoglm.memory_allocator import allocator_environment
from open_autoglm.python_path import PYTHON_PATH, python_path
from open_autoglm.search.trial import FAILED_VALUE, Bench, Rung, TrialOrder, TrialRecord, run_trial

MOST_LOSSES: Final = 2
"""How often a trial whose process died is begun again before it counts as failed."""

_CHUNK: Final = 1 << 16


class Listener(Protocol):
    """What hears of the trials: the search."""

    def decide(self, rung: Rung) -> bool:
        """Whether a trial goes on after a rung."""
        ...

    def note(self, trial: int, step: int, steps: int, seconds: float) -> None:
        """A trial has come so far."""
        ...

    def finish(self, record: TrialRecord) -> None:
        """A trial has ended."""
        ...


class Executor(Protocol):
    """Runs trials and tells a listener of them, in the thread that calls `wait`."""

    @property
    def capacity(self) -> int:
        """How many trials run at a time."""
        ...

    def submit(self, order: TrialOrder) -> None:
        """Begin a trial; at most `capacity` may be open."""
        ...

    def wait(self, listener: Listener, timeout: float | None = None) -> None:
        """Tell the listener what happens, until something did that it may want to act on, or the time is over."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


class InlineExecutor:
    """One trial after the other in this process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._order: TrialOrder | None = None

    @property
    def capacity(self) -> int:
        """One."""
        return 1

    def submit(self, order: TrialOrder) -> None:
        """Keep the trial until `wait`."""
        self._order = order

    def wait(self, listener: Listener, timeout: float | None = None) -> None:
        """Run the trial to its end."""
        order, self._order = self._order, None
        if order is not None:
            number = order.number
            listener.finish(run_trial(self._bench, order, listener.decide, lambda *at: listener.note(number, *at)))

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    orders: int
    events: int
    order: TrialOrder | None = None
    losses: int = 0
    unread: bytes = b""


class ProcessExecutor:
    """Trials in processes that are started once and take one trial after the other.

    target: `module:function` of this package that makes a `Bench` of `context`, a JSON object, in the process.
    count: how many processes. threads: of each. A process that dies takes its trial to a new one, which continues it
    from its checkpoint; one whose processes die again and again is recorded as failed.
    """

    def __init__(self, target: str, context: Mapping[str, Any], *, count: int, threads: int = 1) -> None:
        if count < 1:
            raise ConfigurationError(f"at least one trial must run at a time, not {count}")
        self._target, self._context, self._threads = target, json.dumps(dict(context)), threads
        self._selector = selectors.DefaultSelector()
        self._workers = [self._start() for _ in range(count)]

    @property
    def capacity(self) -> int:
        """How many processes there are."""
        return len(self._workers)

    @property
    def process_ids(self) -> list[int]:
        """Of the processes, for those who watch them."""
        return [worker.process.pid for worker in self._workers]

    def submit(self, order: TrialOrder) -> None:
        """Give the trial to a process that has none. Raises TrainingError when all are busy."""
        free = next((worker for worker in self._workers if worker.order is None), None)
        if free is None:
            raise TrainingError("all processes for trials are busy; this is a fault of Open-AutoGLM")
        free.losses = 0
        self._send(free, replace(order, threads=order.threads or self._threads))

    def wait(self, listener: Listener, timeout: float | None = None) -> None:
        """Tell what the processes report, until a trial has ended or the time is over."""
        while any(worker.order is not None for worker in self._workers):
            ready = self._selector.select(timeout)
            if not ready:
                return
            ended = False
            for key, _ in ready:
                worker: _Worker = key.data
                data = os.read(worker.events, _CHUNK)
                if not data:
                    ended |= self._replace(worker, listener)
                    continue
                *lines, worker.unread = (worker.unread + data).split(b"\n")
                for line in lines:
                    ended |= self._hear(worker, json.loads(line), listener)
            if ended:
                return

    def measure(self) -> list[float]:
        """How fast each process trains while all of them do, in floating-point operations a second.

        Raises TrainingError when a process dies of it.
        """
        for worker in self._workers:
            self._write(worker, json.dumps({"measure": self._threads}))
        rates: list[float] = []
        for worker in self._workers:
            while b"\n" not in worker.unread:
                data = os.read(worker.events, _CHUNK)
                if not data:
                    raise TrainingError(
                        f"a process for trials died while it was measured (code {worker.process.wait()})"
                    )
                worker.unread += data
            line, worker.unread = worker.unread.split(b"\n", 1)
            rates.append(float(json.loads(line)["rate"]))
        return rates

    def close(self) -> None:
        """Kill the processes; what they trained is in their checkpoints."""
        for worker in self._workers:
            self._drop(worker)
        self._selector.close()
        self._workers = []

    def __enter__(self) -> ProcessExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Worker:
        order_read, order_write = os.pipe()
        event_read, event_write = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "open_autoglm.search.trial_process"),
                    *(self._target, str(order_read), str(event_write)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(order_read, event_write),
                env={
                    **os.environ,
                    **allocator_environment(),
                    "OMP_NUM_THREADS": str(self._threads),
                    PYTHON_PATH: python_path(),
                },
            )
        except OSError as error:
            raise TrainingError(f"a process for trials cannot be started: {error.strerror or error}") from None
        finally:
            os.close(order_read)
            os.close(event_write)
        worker = _Worker(process, order_write, event_read)
        self._selector.register(event_read, selectors.EVENT_READ, worker)
        self._write(worker, self._context)
        return worker

    def _send(self, worker: _Worker, order: TrialOrder) -> None:
        worker.order = order
        self._write(worker, json.dumps(order.to_dict()))

    def _write(self, worker: _Worker, line: str) -> None:
        data = line.encode() + b"\n"
        try:
            while data:
                data = data[os.write(worker.orders, data) :]
        except BrokenPipeError:
            return  # it has died, which its other pipe tells

    def _hear(self, worker: _Worker, message: dict[str, Any], listener: Listener) -> bool:
        """Pass a message on. Returns whether a trial has ended. Raises what a trial found wrong with the settings."""
        order = worker.order
        if order is None:
            return False
        if "step" in message:
            listener.note(order.number, *message["step"])
        elif "rung" in message:
            rung = Rung(**message["rung"])
            worker.order = replace(order, reported=rung.rung)
            self._write(worker, json.dumps(listener.decide(rung)))
        elif "fault" in message:
            name, text = message["fault"]
            kind = getattr(errors, name, TrainingError)
            raise kind(text)
        elif "record" in message:
            worker.order = None
            listener.finish(TrialRecord(**message["record"]))
            return True
        return False

    def _replace(self, worker: _Worker, listener: Listener) -> bool:
        """Start another process for one that died. Returns whether its trial is given up."""
        code, order, losses = worker.process.wait(), worker.order, worker.losses + 1
        self._drop(worker)
        self._workers.remove(worker)
        is_lost = order is not None and losses > MOST_LOSSES
        if order is None and losses > MOST_LOSSES:
            raise TrainingError(f"the processes for trials end as soon as they are started (exit code {code})")
        new = self._start()
        new.losses = 0 if is_lost else losses
        self._workers.append(new)
        if order is None:
            return False
        if is_lost:
            why = f"its process died {losses} times, the last time with exit code {code}"
            parameters = order.candidate.config.num_parameters()
            listener.finish(TrialRecord(order.number, "failed", FAILED_VALUE, parameters, failure=why))
            return True
        self._send(new, order)
        return False

    def _drop(self, worker: _Worker) -> None:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()
        self._selector.unregister(worker.events)
        os.close(worker.events)
        os.close(worker.orders)
