# SPDX-License-Identifier: Apache-2.0
"""The guard of a process that runs stages: it outlives nobody, and nothing below it outlives the work.

The runner starts the guard; the guard forks the worker before anything heavy is imported. The guard does nothing but
wait, so it always hears when the runner wants the work stopped or has died, and as the "subreaper" of the tree it
inherits every orphan below it: not even a process that left the worker's group survives. The worker in turn dies with
the guard (PR_SET_PDEATHSIG). Two pipes are the protocol between runner and guard:

* the life pipe, held open by the runner: a byte on it asks for an orderly end (SIGTERM, a grace, SIGKILL); its end
  means that the runner is dead, or done with us, and everything is killed at once;
* the exit pipe, held open by the guard alone: its end tells the runner that no process is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

GRACE_SECONDS: Final = 5.0
"""How long a stage may take to end itself after SIGTERM."""

_ENDINGS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def run_guarded(work: Callable[[], int], life: int, exits: int) -> int:
    """Be the guard of a forked process that does `work`. life, exits: this side's descriptors of the two pipes.

    Returns, in both processes, the exit code for it: the worker's, or 128 + the signal that ended it.
    """
    _process_control(_PR_SET_CHILD_SUBREAPER, 1)
    for descriptor in (life, exits):
        os.set_inheritable(descriptor, False)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)  # the runner decides when to stop, and says so on the life pipe
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    guard = os.getpid()
    # Held back until the worker is ready to die of them, so that one that comes early is not lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_ENDINGS):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDINGS)
        _process_control(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before we could ask to die with it
            return 1
        for descriptor in (life, exits, wake_read, wake_write):
            os.close(descriptor)
        return work()
    with contextlib.suppress(OSError):  # it may have done so itself, or have ended
        os.setpgid(worker, worker)
    return _guard(worker, life, wake_read)


def _guard(worker: int, life: int, wake: int) -> int:
    deadline: float | None = None
    watched = [life, wake]
    while True:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select(watched, [], [], patience)
        if wake in readable:
            os.read(wake, 4096)
        status = _reap(worker)
        if status is not None:
            break
        if life in readable:
            if not os.read(life, 1):
                break
            _signal_group(worker, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
        elif deadline is not None and time.monotonic() >= deadline:
            break
    killed = _kill_everything(worker)
    if status is None:
        status = killed
    if status is None:
        return 1
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _reap(worker: int) -> int | None:
    """Collect the dead among our children, orphans included; the worker's wait status if it is one of them."""
    found: int | None = None
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if process == 0:
            return found
        if process == worker:
            found = status


def _kill_everything(worker: int) -> int | None:
    """Kill and collect all our descendants: the orphans of what we kill become our children, until none is left."""
    found: int | None = None
    _signal_group(worker, signal.SIGKILL)
    while True:
        for process in _children():
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            process, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return found
        if process == worker:
            found = status


def _children() -> list[int]:
    own = str(os.getpid())
    children: list[int] = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in brackets, may hold anything; the parent is the second field after it.
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[1].decode() == own:
            children.append(int(entry.name))
    return children


def _signal_group(worker: int, number: signal.Signals) -> None:
    try:
        os.killpg(worker, number)
    except (ProcessLookupError, PermissionError):
        return


def _process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
