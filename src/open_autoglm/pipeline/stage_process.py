# SPDX-License-Identifier: Apache-2.0
"""The process of one stage attempt: a small guard that outlives nobody, and the worker that runs the stage.

The runner starts the guard; the guard forks the worker before anything heavy is imported. The guard does nothing but
wait, so it always hears when the runner wants the stage stopped or has died, and as the "subreaper" of the tree it
inherits every orphan below it: not even a process that left the worker's group survives the stage. The worker in turn
dies with the guard (PR_SET_PDEATHSIG). Three pipes and files are the whole protocol:

* the life pipe, held open by the runner: a byte on it asks for an orderly end (SIGTERM, a grace, SIGKILL); its end
  means that the runner is dead, and everything is killed at once;
* the exit pipe, held open by the guard alone: its end tells the runner that no process of the stage is left;
* `request.json` in the stage's folder, and as answer `output.json` or `failure.json`, each written whole or not at all.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import OpenAutoGLMError, PipelineError, StorageError
from open_autoglm.pipeline.context import FAILURE_NAME, OUTPUT_NAME, REQUEST_NAME, StageContext
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.packet import Packet
from open_autoglm.storage import read_json, write_json

GRACE_SECONDS: Final = 5.0
"""How long a stage may take to end itself after SIGTERM."""

_LINGER_SECONDS: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def main(arguments: list[str]) -> int:
    """Run one attempt: MODULE:ATTRIBUTE, the stage's folder, and the numbers of the life pipe and the exit pipe.

    Returns the exit code of this process, which is the worker's or 128 + the signal that ended it.
    """
    target, folder, life, exits = arguments[0], Path(arguments[1]), int(arguments[2]), int(arguments[3])
    _process_control(_PR_SET_CHILD_SUBREAPER, 1)
    for descriptor in (life, exits):
        os.set_inheritable(descriptor, False)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the runner decides when to stop, and says so on the life pipe
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    guard = os.getpid()
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        os.setpgid(0, 0)
        _process_control(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before we could ask to die with it
            return 1
        for descriptor in (life, exits, wake_read, wake_write):
            os.close(descriptor)
        return _work(target, folder)
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


def _work(target: str, folder: Path) -> int:
    request = read_json(folder / REQUEST_NAME)
    _restore_environment(request["environment"])
    log_path = folder / f"attempt-{request['attempt']}.log"
    log = logging.Logger(f"open_autoglm.stage.{request['stage']}")  # not getLogger: it belongs to this attempt alone
    handler = _QuietFileHandler(log_path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        packet = Packet.from_dict(request["packet"])
        run_folder = Path(request["folder"])
        context = StageContext(
            folder=run_folder,
            stage=request["stage"],
            config=request["config"],
            attempt=request["attempt"],
            idempotency_key=request["idempotency_key"],
            deadline=request["deadline"],
            log=log,
            events=EventLog(run_folder),
        )
        result = _resolve(target)(packet, context)
        if not isinstance(result, Packet):
            raise PipelineError(f"stage '{context.stage}' returned a {type(result).__name__}; it must return a Packet")
        if result.session_id != packet.session_id:
            raise PipelineError(
                f"stage '{context.stage}' changed the session_id of its packet; use packet.with_payload"
            )
        write_json(folder / OUTPUT_NAME, {"idempotency_key": context.idempotency_key, "packet": result.to_dict()})
    except Exception as error:  # noqa: BLE001 - whatever it is, the runner decides what becomes of it
        log.error("the attempt failed\n%s", traceback.format_exc())
        _end_soon()
        try:
            write_json(folder / FAILURE_NAME, {"attempt": request["attempt"], **_describe(error)})
        except StorageError:
            return StorageError.exit_code  # all that can be said on a full disk
        return 1
    _end_soon()
    return 0


class _QuietFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class named it
        """A log that cannot be written must not disturb the terminal: what matters is reported as well."""


def _restore_environment(values: dict[str, str | None]) -> None:
    """What the runner changed to start us is not meant for the programs that the stage starts."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _resolve(target: str) -> Callable[[Packet, StageContext], Any]:
    module_name, _, attribute = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise PipelineError(f"{target} is not callable; a stage is a function of a packet and a context")
    return found


def _describe(error: Exception) -> dict[str, Any]:
    """The error as JSON: `types` from its class up the tree, so that the runner can raise the nearest one it knows."""
    types = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, OpenAutoGLMError)]
    message = str(error)
    if not types:
        message = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return {"types": types, "message": message, "permanent": bool(types)}


def _end_soon() -> None:
    """The result is safe on disk: a thread or exit handler of the stage that hangs must not hold the run."""

    def end() -> None:
        time.sleep(_LINGER_SECONDS)
        os._exit(0)

    threading.Thread(target=end, name="end-soon", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
