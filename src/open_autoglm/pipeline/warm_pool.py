# SPDX-License-Identifier: Apache-2.0
"""Processes that wait for stages to run, seen from the runner: ask one, wait, stop it in time, read what came of it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.attempt import ENVIRONMENT, StopSignal, ask_to_end, explain_exit
from open_autoglm.pipeline.specification import ResourceSpecification
from open_autoglm.pipeline.warm_process import receive, send
from open_autoglm.python_path import PYTHON_PATH, python_path

_START_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Attempt:
    """What a process is asked to do: the fields of `StageContext`, the packet, and where the code is."""

    target: str
    folder: Path
    stage: str
    number: int
    attempt: int
    idempotency_key: str
    config: Mapping[str, Any]
    packet: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    timeout_seconds: float | None = None
    trace_id: str = ""
    cursor: Any = None
    resources: ResourceSpecification | None = None

    @property
    def log_name(self) -> str:
        """The attempt's log in the stage's folder."""
        prefix = f"item-{self.number}-" if self.number else ""
        return f"{prefix}attempt-{self.attempt}.log"

    def request(self, deadline: float | None) -> dict[str, Any]:
        """As `warm_process` reads it."""
        return {
            "target": self.target,
            "folder": str(self.folder),
            "stage": self.stage,
            "attempt": self.attempt,
            "idempotency_key": self.idempotency_key,
            "config": self.config,
            "packet": self.packet,
            "needs": list(self.needs),
            "deadline": deadline,
            "trace_id": self.trace_id,
            "cursor": self.cursor,
            "log": self.log_name,
            "environment": {PYTHON_PATH: os.environ.get(PYTHON_PATH)},
        }


@dataclass(frozen=True)
class AttemptOutcome:
    """What came of an attempt: packets, a failure as `describe_error` has it, or neither if it was stopped."""

    packets: list[dict[str, Any]] | None = None
    failure: dict[str, Any] | None = None
    cursor: dict[str, Any] | None = field(default=None)
    """`{"value": ...}` if the stage set one."""

    @property
    def was_stopped(self) -> bool:
        """Whether the run was stopped meanwhile."""
        return self.packets is None and self.failure is None


class WarmPool:
    """Processes that are kept for the next attempt. Thread-safe.

    idle: how many to keep when they have nothing to do. lock: a descriptor that all of them hold open too.
    """

    def __init__(self, idle: int, lock: int | None = None) -> None:
        self._most_idle = idle
        self._held = () if lock is None else (lock,)
        self._idle: list[_WarmProcess] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(self, attempt: Attempt, stop: StopSignal) -> AttemptOutcome:
        """Run one attempt and wait for it. A failure is an outcome; nothing is raised for it."""
        fresh = False
        while True:
            try:
                process = self._take(fresh)
            except OSError as error:
                return _failure(f"its process cannot be started: {error.strerror or error}")
            # The stage's time begins when Python has started: that is no work of the stage.
            process.wait_until_ready(stop)
            deadline = None if attempt.timeout_seconds is None else time.monotonic() + attempt.timeout_seconds
            reply, ended, code = process.ask(attempt.request(deadline), deadline, stop)
            if reply is not None and reply.get("refused") and not fresh:
                self._give_back(process, retire=False)
                fresh = True
                continue
            if reply is None and ended == "exited" and not process.has_worked and not fresh:
                fresh = True  # it had died while it was idle: that is no fault of this stage
                continue
            break
        log = str(attempt.folder / "stages" / attempt.stage / attempt.log_name)
        if reply is not None:
            self._give_back(process, retire=bool(reply.get("retire")))
            if "failure" in reply:
                return AttemptOutcome(failure={**reply["failure"], "log": log})
            return AttemptOutcome(packets=reply["packets"], cursor=reply.get("cursor"))
        if ended == "stopped":
            return AttemptOutcome()
        if ended == "late":
            return _failure(f"it ran into its time limit of {attempt.timeout_seconds:g} s and was stopped", log)
        return _failure(explain_exit(code), log)

    def close(self) -> None:
        """End all idle processes; those at work are ended when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()

    def _take(self, fresh: bool) -> _WarmProcess:
        with self._lock:
            if self._idle and not fresh:
                return self._idle.pop()
        return _WarmProcess(self._held)

    def _give_back(self, process: _WarmProcess, *, retire: bool) -> None:
        with self._lock:
            if not retire and not self._closed and len(self._idle) < self._most_idle:
                self._idle.append(process)
                return
        process.end()


class _WarmProcess:
    """One guard and its worker. Raises OSError if it cannot be started."""

    def __init__(self, held: tuple[int, ...]) -> None:
        self.has_worked = False
        self._is_ready = False
        life_read, self._life = os.pipe()
        self._exit, exit_write = os.pipe()
        self._socket, theirs = socket.socketpair()
        given = (life_read, exit_write, theirs.fileno())
        try:
            self._process = subprocess.Popen(
                # -P: the working folder is not on the path, where a user's random.py would be taken for Python's
                [sys.executable, "-P", "-m", "open_autoglm.pipeline.warm_process", *map(str, given)],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(*given, *held),
                start_new_session=True,
                env={
                    **ENVIRONMENT,
                    **os.environ,
                    PYTHON_PATH: python_path(),
                },
            )
        except BaseException:
            os.close(self._life)
            os.close(self._exit)
            self._socket.close()
            raise
        finally:
            os.close(life_read)
            os.close(exit_write)
            theirs.close()

    def wait_until_ready(self, stop: StopSignal) -> None:
        """Wait until the process can be asked, has died, or the run is stopped: `ask` then says what became of it."""
        if not self._is_ready and self._socket in select.select([self._socket, stop], [], [], _START_SECONDS)[0]:
            receive(self._socket)
            self._is_ready = True

    def ask(
        self, request: Mapping[str, Any], deadline: float | None, stop: StopSignal
    ) -> tuple[dict[str, Any] | None, str, int]:
        """The reply, or None with how it ended instead (`exited`, `late`, `stopped`) and the exit code."""
        self.has_worked = False
        try:
            send(self._socket, request)
            self.has_worked = True
            ended = self._wait(deadline, stop)
            if ended != "replied":
                ask_to_end(self._life)
            # Also of one that is being ended: it may wait for us to read.
            reply = receive(self._socket)
            if reply is not None and "ready" in reply:  # it took its time
                reply = receive(self._socket)
        except OSError:
            reply, ended = None, "exited"
        except PipelineError as error:
            self.end()
            return {"failure": {"types": ["PipelineError"], "message": str(error), "permanent": True}}, "replied", 0
        if ended == "replied":
            return (reply, ended, 0) if reply is not None else (None, "exited", self._close())
        if ended == "exited":
            return None, ended, self._close()
        select.select([self._exit], [], [])  # the guard gives it a grace, and kills what is left then
        code = self._close()
        if reply is not None and "packets" in reply:  # it was just done, or looked at `cancelled` and ended by itself
            return {**reply, "retire": True}, "replied", code
        return None, ended, code

    def end(self) -> None:
        """Kill it with everything that it has started."""
        self._close()

    def _wait(self, deadline: float | None, stop: StopSignal) -> str:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([self._socket, stop], [], [], patience)
        if self._socket in readable:
            return "replied"
        return "stopped" if readable else "late"

    def _close(self) -> int:
        if self._life >= 0:
            os.close(self._life)  # the guard kills everything at once
            self._life = -1
            select.select([self._exit], [], [])
            os.close(self._exit)
            self._socket.close()
        return self._process.wait()


def _failure(message: str, log: str | None = None) -> AttemptOutcome:
    return AttemptOutcome(failure={"types": [], "message": message, "permanent": False, "log": log})
