# SPDX-License-Identifier: Apache-2.0
"""DBOS as this package uses it: one workflow for each stage of a run, in an SQLite file in the run's folder.

What was checked in DBOS 3.4 and set here: JSON instead of its default serializer, which is pickle; no network, no
telemetry, no console; SQLite's rollback journal (DBOS leaves SQLite's default, which is the same, but a file once
switched to WAL stays so, and WAL can corrupt before SQLite 3.51.3); its log goes to RUN/pipeline.log. DBOS recovers
the workflows of a dead process by itself at launch, before we could look at them; each process therefore takes a new
executor id, which recovers nothing, and `start` continues a workflow by its id when its turn comes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import PipelineError, StorageError

DATABASE_NAME: Final = "pipeline.sqlite"
LOG_NAME: Final = "pipeline.log"

_APPLICATION: Final = "open-autoglm"
_WORKFLOW: Final = "open_autoglm.stage"
# Workflows are only continued by the same version; raise it when the steps of a stage's workflow change.
_VERSION: Final = "1"
_PATIENCE_SECONDS: Final = 20.0
_ENDED: Final = ("SUCCESS", "ERROR")

# DBOS is one per process; runs in several threads of a process take turns.
_TURN: Final = threading.Lock()

StageWorkflow = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Runs a stage to its end: its name and its packet in, the outcome out, both JSON. Called in a thread of its own."""


@dataclass(frozen=True)
class StageRecord:
    """The latest workflow of a stage. outcome: what it returned; None while it has not ended properly."""

    generation: int
    status: str
    outcome: dict[str, Any] | None


class DurableStages:
    """The workflows of one run. Made by `durable_stages`.

    A workflow's id is RUN_ID/STAGE/GENERATION. A stage that failed for good has an outcome like any other; running it
    once more takes the next generation, so that nothing recorded is ever changed.
    """

    def __init__(self, run_id: str, workflow: Callable[..., Any], complaints: _LogFile) -> None:
        self._run_id = run_id
        self._workflow = workflow
        self._complaints = complaints

    def records(self) -> dict[str, StageRecord]:
        """What is known about each stage that was ever begun. Raises StorageError."""
        from dbos import DBOS

        found: dict[str, StageRecord] = {}
        with _explained():
            for status in DBOS.list_workflows(workflow_id_prefix=f"{self._run_id}/", load_input=False):
                _, stage, number = status.workflow_id.rsplit("/", 2)
                generation = int(number)
                if stage not in found or found[stage].generation < generation:
                    outcome = status.output if status.status == "SUCCESS" else None
                    found[stage] = StageRecord(generation, status.status, outcome)
        return found

    def start(self, stage: str, packet: dict[str, Any], record: StageRecord | None) -> str:
        """Begin a stage, or continue it where a dead process left it; returns the workflow's id. Raises StorageError.

        record: its latest one. One that has ended is not continued: a new generation begins.
        """
        from dbos import DBOS, SetWorkflowID

        with _explained():
            if record is not None and record.status not in _ENDED:
                workflow_id = f"{self._run_id}/{stage}/{record.generation}"
                DBOS.resume_workflow(workflow_id)  # by way of DBOS's queue, which looks once a second
                return workflow_id
            workflow_id = f"{self._run_id}/{stage}/{0 if record is None else record.generation + 1}"
            with SetWorkflowID(workflow_id):
                DBOS.start_workflow(self._workflow, stage, packet)
            return workflow_id

    def outcome(self, workflow_id: str) -> dict[str, Any]:
        """What a workflow returned, once its function has: waits until DBOS has it on disk. Raises StorageError."""
        from dbos import DBOS

        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with _explained():
                status = DBOS.get_workflow_status(workflow_id)
            if status is not None and status.status == "SUCCESS":
                return dict(status.output or {})
            if status is not None and status.status == "ERROR":
                raise StorageError(f"the end of a stage could not be recorded: {status.error}; run it again")
            if self._complaints.fault is not None:
                raise self._complaints.fault
            if time.monotonic() > deadline:
                raise StorageError(
                    f"the end of a stage could not be recorded in {DATABASE_NAME}; see {LOG_NAME} in the run's folder, "
                    "check the space on the disk and run it again"
                )
            time.sleep(0.01)


@contextlib.contextmanager
def durable_stages(folder: Path, run_id: str, workflow: StageWorkflow) -> Iterator[DurableStages]:
    """DBOS running for one run, whose stages are run by `workflow`; taken down again on leaving.

    Waits while another thread has it. Raises PipelineError if the program around us uses DBOS itself, StorageError if
    the run's database cannot be used.
    """
    from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

    database = folder / DATABASE_NAME
    with _TURN, _log_file(folder / LOG_NAME) as complaints:
        # There is no public way to ask whether DBOS is in use, nor to put registered functions aside.
        inside = sys.modules[DBOS.__module__]
        if getattr(inside, "_dbos_global_instance", None) is not None:
            raise PipelineError("this process runs DBOS for something else; run the pipeline in a process of its own")
        others = getattr(inside, "_dbos_global_registry", None)
        setattr(inside, "_dbos_global_registry", None)  # noqa: B010
        try:
            with _explained():
                _connect(database).close()
                DBOS(
                    config=DBOSConfig(
                        name=_APPLICATION,
                        application_version=_VERSION,
                        executor_id=uuid.uuid4().hex,
                        system_database_url=f"sqlite:///{DATABASE_NAME}",  # only names the dialect: see creator
                        db_engine_kwargs={"creator": lambda: _connect(database)},
                        serializer=DBOSPortableJSONSerializer(),
                        log_level="WARNING",
                        enable_otlp=False,
                        # The listener serves messages between workflows, which we do not use: it only sleeps, and
                        # delays the end of the run by one such interval.
                        notification_listener_polling_interval_sec=0.02,
                        scheduler_polling_interval_sec=3600.0,
                    )
                )
                function = DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=None)(_named(workflow))
                DBOS.launch()
            yield DurableStages(run_id, function, complaints)
        finally:
            DBOS.destroy()
            _join_threads()
            setattr(inside, "_dbos_global_registry", others)  # noqa: B010


def step(name: str, function: Callable[[], Any]) -> Any:
    """Inside a stage's workflow: do something once, and have its JSON result from the record ever after."""
    from dbos import DBOS

    return DBOS.run_step({"name": name}, function)


def _join_threads() -> None:
    """Wait for the threads that DBOS leaves to end by themselves: nothing of this run goes on behind the next."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith("dbos-executor-"):
            thread.join(max(0.0, deadline - time.monotonic()))


def _named(workflow: StageWorkflow) -> StageWorkflow:
    def stage(name: str, packet: dict[str, Any]) -> dict[str, Any]:
        return workflow(name, packet)

    return stage


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30.0, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
        connection.execute("PRAGMA synchronous=FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what SQLite refuses inside the block into a StorageError that says what to do."""
    try:
        yield
    except Exception as error:
        explained = explain_database_error(error)
        if explained is None:
            raise
        raise explained from error


def explain_database_error(error: Exception) -> StorageError | None:
    """A StorageError that says what to do, if `error` comes from the database."""
    from sqlalchemy.exc import DBAPIError

    if not isinstance(error, DBAPIError | sqlite3.Error):
        return None
    return StorageError(_advice(str(getattr(error, "orig", None) or error)))


def _advice(text: str) -> str:
    if "full" in text or "disk I/O" in text:
        return (
            f"cannot write {DATABASE_NAME}: the disk is full or failing ({text}); free some space and run the same "
            "command again, it continues where it stopped"
        )
    if "malformed" in text or "not a database" in text:
        return (
            f"{DATABASE_NAME} in the run's folder is damaged ({text}); delete that file and run the same command "
            "again, the results of finished stages are kept beside it"
        )
    return f"cannot use {DATABASE_NAME} in the run's folder ({text}); check its rights and the space on the disk"


class _LogFile(logging.FileHandler):
    """Keeps what DBOS has to say. When it cannot record the end of a workflow, it says so here and nowhere else."""

    fault: StorageError | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; remember a fault of the database."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception):
            self.fault = explain_database_error(error) or self.fault
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class named it
        """A log that cannot be written must not disturb the terminal: what matters is raised as well."""


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[_LogFile]:
    """Send what DBOS logs to a file, and nowhere else; it adds a console handler only where it finds none."""
    logger = logging.getLogger("dbos")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    handler = _LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {os.getpid()} %(levelname)s %(message)s"))
    logger.handlers, logger.propagate = [handler], False
    try:
        yield handler
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        handler.close()
