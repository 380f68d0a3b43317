# SPDX-License-Identifier: Apache-2.0
"""Attempts of stages as tasks on a Ray cluster: the node runs them under the same guard as a worker does here.

Only JSON goes in and out. Ray itself repeats nothing: a task whose node dies is a lost attempt, and the conductor makes
a new one with a number of its own. What a lost one may yet say is heard by nobody. The run's folder must lie where
every node reaches it; variables and secrets that the stage refers to are looked up on the node, and never sent.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import socket
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError, RayTaskError

from open_autoglm.pipeline.attempt import StopSignal
from open_autoglm.pipeline.context import stage_folder
from open_autoglm.pipeline.invocation import AttemptLog
from open_autoglm.pipeline.specification import ResourceSpecification
from open_autoglm.pipeline.warm_pool import Attempt, AttemptOutcome, WarmPool
from open_autoglm.python_path import extend_python_path, python_folders

_POLL_SECONDS: Final = 0.2
_END_SECONDS: Final = 30.0
_KNOCK_SECONDS: Final = 5.0
_ROOM_SECONDS: Final = 10.0
"""How long no node may have the room that a stage asks for before its log says so."""


class RayPool:
    """Runs attempts on the cluster that RAY_ADDRESS names, or on one that is started on this machine. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owns = False
        self._task: Any = None

    def run(self, attempt: Attempt, stop: StopSignal) -> AttemptOutcome:
        """Run one attempt on some node and wait for it; the time until a node has room is not the stage's time."""
        try:
            self._join()
        except Exception as error:  # noqa: BLE001 - Ray raises plain ones, such as for a start that took too long
            return _lost(f"the Ray cluster cannot be reached: {error}")
        try:
            wanted = attempt.resources or ResourceSpecification()
            options = {"num_cpus": wanted.cpu, "num_gpus": wanted.gpu, "memory": wanted.memory or None}
            task = self._task.options(**options).remote(_job_of(attempt))
        except ValueError as error:  # such as 1.5 cpu, of which Ray has whole ones only
            message = f"Ray cannot give what resources asks for: {error}"
            return AttemptOutcome(failure={"types": [], "message": message, "permanent": True})
        except (RayError, RuntimeError) as error:
            return _lost(f"the Ray cluster takes no work: {error}")
        try:
            if not self._wait(task, attempt, stop):
                return AttemptOutcome()
            return AttemptOutcome(**json.loads(ray.get(task)))
        except RayTaskError as error:
            if isinstance(error.cause, RayError):
                return _lost(f"its node or process died: {error.cause}")
            return AttemptOutcome(failure={"types": [], "message": f"on its node: {error.cause}", "permanent": False})
        except RayError as error:
            return _lost(f"its node or process died: {type(error).__name__}")

    def _wait(self, task: Any, attempt: Attempt, stop: StopSignal) -> bool:
        """Until the task has ended; False if the run was stopped, and the task with it."""
        unsaid_until = time.monotonic() + _ROOM_SECONDS
        while not ray.wait([task], timeout=_POLL_SECONDS)[0]:
            if time.monotonic() >= unsaid_until:
                unsaid_until = math.inf
                _say_what_is_missing(attempt)
            if select.select([stop], [], [], 0)[0]:
                # The process of the task is killed, and its guard, which hears of that, kills all that it started.
                ray.cancel(task, force=True)
                ray.wait([task], timeout=_END_SECONDS)
                return False
        return True

    def close(self) -> None:
        """Leave the cluster, if it was joined here."""
        with self._lock:
            if self._owns:
                ray.shutdown()
            self._owns, self._task = False, None

    def _join(self) -> None:
        with self._lock:
            if not ray.is_initialized():
                _knock()
                ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
                self._owns, self._task = True, None
            if self._task is None:
                remote: Any = ray.remote
                self._task = remote(max_retries=0)(_run)


def _knock() -> None:
    """Raise OSError where nobody listens at RAY_ADDRESS: Ray itself would try for minutes, and hear of no cancel."""
    address = os.environ.get("RAY_ADDRESS", "")
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=_KNOCK_SECONDS).close()


def _job_of(attempt: Attempt) -> str:
    return json.dumps({"attempt": {**asdict(attempt), "folder": str(attempt.folder)}, "paths": python_folders()})


def _run(job: str) -> str:
    """On the node: run the attempt in a process under its guard, which dies with us. job, and what comes back: JSON."""
    asked: dict[str, Any] = json.loads(job)
    extend_python_path(asked["paths"])
    values = asked["attempt"]
    given = Attempt(**{**values, "folder": Path(values["folder"]), "needs": tuple(values["needs"]), "resources": None})
    stop, pool = StopSignal(), WarmPool(idle=0)
    try:
        return json.dumps(asdict(pool.run(given, stop)))
    finally:
        pool.close()
        stop.close()


def _say_what_is_missing(attempt: Attempt) -> None:
    """Write into the attempt's log what no node has, if none is large enough: the attempt waits until one comes."""
    wanted = attempt.resources or ResourceSpecification()
    asked = {"CPU": wanted.cpu, "GPU": float(wanted.gpu), "memory": float(wanted.memory)}
    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0.0) >= amount for name, amount in asked.items()) for node in nodes):
        return
    folder = stage_folder(attempt.folder, attempt.stage)
    with contextlib.suppress(OSError):  # no reason to end anything
        folder.mkdir(parents=True, exist_ok=True)
    log = AttemptLog(attempt.stage, folder / attempt.log_name)
    log.warning(
        "no node of the Ray cluster has %g cpu, %g GB and %d gpu; waiting until one comes",
        wanted.cpu,
        wanted.memory / 1e9,
        wanted.gpu,
    )
    log.close()


def _lost(message: str) -> AttemptOutcome:
    return AttemptOutcome(failure={"types": [], "message": message, "permanent": False, "lost": True})
