# SPDX-License-Identifier: Apache-2.0
"""One attempt of a stage, seen from the runner: start its process, wait, stop it in time, and read what came of it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm import errors
from open_autoglm.errors import OpenAutoGLMError, PipelineError, StorageError
from open_autoglm.memory_allocator import allocator_environment
from open_autoglm.pipeline.context import FAILURE_NAME, OUTPUT_NAME, REQUEST_NAME, stage_folder
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.specification import StageSpecification
from open_autoglm.python_path import PYTHON_PATH, python_path
from open_autoglm.storage import explained, read_json, write_json

ENVIRONMENT: Final = {"GOMP_SPINCOUNT": "20000"}
"""OpenMP's threads otherwise wait for each other at full speed, which on a shared core stops the work they wait for."""


class StageStoppedError(BaseException):
    """The run is being stopped. Not an Exception, so that nothing records it as the stage's own failure."""


class StopSignal:
    """A flag, set once for a whole run, that threads can wait for together with other descriptors."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def set(self) -> None:
        """Stop the run; may be called again."""
        os.write(self._write, b"!")

    def fileno(self) -> int:
        """Readable, for `select`, once the flag is set."""
        return self._read

    def wait(self, seconds: float) -> None:
        """Sleep. Raises StageStoppedError as soon as the flag is set."""
        if select.select([self], [], [], max(0.0, seconds))[0]:
            raise StageStoppedError

    def close(self) -> None:
        """Free the descriptors, when no thread waits any more."""
        os.close(self._read)
        os.close(self._write)


@dataclass(frozen=True)
class AttemptRunner:
    """Runs attempts of the stages of one run.

    lock: the descriptor of the run folder's lock, which every process of a stage holds too.
    """

    folder: Path
    run_id: str
    modules: dict[str, str]
    lock: int
    events: EventLog
    stop: StopSignal

    def run(self, stage: StageSpecification, packet: dict[str, Any]) -> dict[str, Any]:
        """Run the stage once and wait for the end of its last process.

        Returns `{"packet": ...}`, or `{"failure": {"types", "message", "permanent", "log"}}`.
        Raises StageStoppedError when the run is stopped meanwhile.
        """
        try:
            return self._run(stage, packet)
        except OpenAutoGLMError as error:  # our own bookkeeping failed, for instance on a full disk
            return _failure(type(error).__name__, str(error), permanent=True)

    def _run(self, stage: StageSpecification, packet: dict[str, Any]) -> dict[str, Any]:
        folder = stage_folder(self.folder, stage.stage)
        key = f"{self.run_id}/{stage.stage}"
        # A runner that died between the stage's last breath and its own record of it left the output here.
        output = _committed(folder, key)
        if output is not None:
            return {"packet": output}
        self.stop.wait(0)
        attempt, log = _new_log(folder)
        self.events.append(stage.stage, {"state": "running", "attempt": attempt})
        deadline = None if stage.timeout_seconds is None else time.monotonic() + stage.timeout_seconds
        write_json(
            folder / REQUEST_NAME,
            {
                "folder": str(self.folder),
                "stage": stage.stage,
                "attempt": attempt,
                "idempotency_key": key,
                "config": stage.config,
                "deadline": deadline,
                "packet": packet,
                "environment": {PYTHON_PATH: os.environ.get(PYTHON_PATH)},
            },
        )
        try:
            ended, code = self._run_process(self.modules[stage.module], folder, deadline)
        except OSError as error:
            return _failure(None, f"its process cannot be started: {error.strerror or error}", permanent=False)
        output = _committed(folder, key)
        if output is not None:
            return {"packet": output}
        if ended == "stopped":
            raise StageStoppedError
        self.stop.wait(0)  # what ended by itself while everything is told to end has not failed
        if ended == "late":
            text = f"it ran into its time limit of {stage.timeout_seconds:g} s and was stopped"
            return _failure(None, text, permanent=False, log=log)
        written = folder / FAILURE_NAME
        if written.exists():
            failure = read_json(written)
            if failure.get("attempt") == attempt:
                return {"failure": {**failure, "log": str(log)}}
        if code == StorageError.exit_code:
            advice = "free some space and run the same command again, it continues where it stopped"
            text = f"cannot write {folder}: the disk is full or refuses; {advice}"
            return _failure("StorageError", text, permanent=True)
        return _failure(None, explain_exit(code), permanent=False, log=log)

    def _run_process(self, target: str, folder: Path, deadline: float | None) -> tuple[str, int]:
        """How it ended (`exited`, `late` or `stopped`) and its exit code. Raises OSError if it cannot be started."""
        life_read, life_write = os.pipe()
        exit_read, exit_write = os.pipe()
        try:
            process = subprocess.Popen(
                [
                    # -P: the working folder is not on the path, where a user's random.py would be taken for Python's
                    *(sys.executable, "-P", "-m", "open_autoglm.pipeline.stage_process"),
                    *(target, str(folder), str(life_read), str(exit_write)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(life_read, exit_write, self.lock),
                start_new_session=True,
                env={
                    **ENVIRONMENT,
                    **os.environ,
                    **allocator_environment(),
                    PYTHON_PATH: python_path(),
                },
            )
            os.close(exit_write)
            exit_write = -1
            try:
                ended = self._wait(exit_read, deadline)
                if ended != "exited":
                    ask_to_end(life_write)
                    select.select([exit_read], [], [])
                return ended, process.wait()
            except BaseException:
                os.close(life_write)  # the guard kills everything at once
                life_write = -1
                process.wait()
                raise
        finally:
            for descriptor in (life_read, life_write, exit_read, exit_write):
                if descriptor >= 0:
                    os.close(descriptor)

    def _wait(self, exit_read: int, deadline: float | None) -> str:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select([exit_read, self.stop], [], [], patience)
        if exit_read in readable:
            return "exited"
        return "stopped" if readable else "late"


def error_of(stage: str, failure: dict[str, Any], failures: int) -> OpenAutoGLMError:
    """The exception to raise for a stage that failed for good: the stage's own where it is one of ours."""
    for name in failure["types"]:
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, OpenAutoGLMError):
            return kind(failure["message"])
    times = f" after {failures} attempts" if failures > 1 else ""
    log = f" (details: {failure['log']})" if failure.get("log") else ""
    return PipelineError(f"stage '{stage}' failed{times}: {failure['message']}{log}")


def _failure(kind: str | None, message: str, *, permanent: bool, log: Path | None = None) -> dict[str, Any]:
    types = [] if kind is None else [kind]
    log_name = None if log is None else str(log)
    return {"failure": {"types": types, "message": message, "permanent": permanent, "log": log_name}}


def _committed(folder: Path, key: str) -> dict[str, Any] | None:
    path = folder / OUTPUT_NAME
    if not path.exists():
        return None
    output = read_json(path)
    if not isinstance(output, dict) or output.get("idempotency_key") != key:
        return None
    return Packet.from_dict(output["packet"]).to_dict()


def _new_log(folder: Path) -> tuple[int, Path]:
    """The number of this attempt and its log file: creating the file is what counts the attempt, crash or not."""
    with explained(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        attempt = 1
        while True:
            path = folder / f"attempt-{attempt}.log"
            try:
                path.open("x").close()
            except FileExistsError:
                attempt += 1
            else:
                return attempt, path


def ask_to_end(life: int) -> None:
    """Tell a guard, by its life pipe, to end its work in an orderly way."""
    try:
        os.write(life, b"!")
    except BrokenPipeError:  # it has just ended by itself
        return


def explain_exit(code: int) -> str:
    """What an exit code says about a process that ended without a result."""
    number = code - 128 if code > 128 else -code
    if number == signal.SIGKILL:
        return "its process was killed (signal 9); most often that means that the machine ran out of memory"
    if number > 0:
        try:
            return f"its process crashed ({signal.Signals(number).name})"
        except ValueError:
            return f"its process crashed (signal {number})"
    return f"its process ended without a result (exit code {code})"
