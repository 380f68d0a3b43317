# SPDX-License-Identifier: Apache-2.0
"""The journal and the folder of pipelines for the routes: blocking work in threads of its own, faults with a status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from open_autoglm.errors import ConfigurationError, StorageError
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_records import RunRecord
from open_autoglm.pipeline.pipeline_folder import CheckedFile, PipelineFolder
from open_autoglm.pipeline.run_logs import RunLogs
from open_autoglm.pipeline.worker_book import WorkerBook
from open_autoglm.serve.error_shape import HttpError
from open_autoglm.serve.pipelines.pipeline_settings import PipelineSettings

NO_WORKER: Final = (
    "no worker is alive, so nothing runs until one is started: open-autoglm worker, with the same database and folder"
)
_THREADS: Final = 8

_Result = TypeVar("_Result")


class PipelineDesk:
    """What the routes about pipelines share. It writes requests into the journal; workers carry them out.

    folder: where runs have their folders. Raises ConfigurationError or StorageError for a folder or database that
    cannot be used.
    """

    def __init__(self, settings: PipelineSettings) -> None:
        if settings.pipelines is None:
            raise ConfigurationError("--pipelines names no folder")
        self.folder: Path = Path(settings.runs_folder).expanduser().resolve()
        self.files = PipelineFolder(Path(settings.pipelines).expanduser())
        self.journal = Journal(settings.database or f"sqlite:///{self.folder}/pipelines.sqlite")
        self._workers = WorkerBook(self.journal)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pipelines")

    async def do(self, work: Callable[[], _Result]) -> _Result:
        """Do blocking work in a thread. Raises HttpError 503 when the database cannot be used."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except StorageError as error:
            raise HttpError(503, str(error), code="storage_unavailable") from None

    def who_works(self) -> dict[str, Any]:
        """How many workers live, and what to do if none does. Blocks."""
        alive = len(self._workers.alive(self.folder))
        return {"workers": alive, "note": None if alive else NO_WORKER}

    def pipeline(self, name: str, settings: dict[str, Any] | None = None) -> CheckedFile:
        """A file by its name. Blocks. Raises HttpError 404 if there is none."""
        found = self.files.find(name, settings)
        if found is None:
            raise HttpError(404, f"there is no pipeline {name[:100]!r}", "pipeline")
        return found

    def run(self, run_id: str) -> RunRecord:
        """A run by its whole id. Blocks. Raises HttpError 404 if there is none."""
        record = self.journal.find(run_id)
        if record is None:
            raise HttpError(404, f"there is no run {run_id[:100]!r}", "run")
        return record

    def logs(self, run: RunRecord) -> RunLogs:
        """The logs of a run."""
        return RunLogs(Path(run.folder), self.folder)

    def close(self) -> None:
        """Let go of the database."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.journal.close()
