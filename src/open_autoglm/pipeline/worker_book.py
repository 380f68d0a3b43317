# SPDX-License-Identifier: Apache-2.0
"""Which workers live, in the journal's database: each says so every few seconds, and leaves when it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import delete, insert, select, update

from open_autoglm.pipeline.journal_records import JournalReader
from open_autoglm.pipeline.journal_tables import workers
from open_autoglm.pipeline.worker_lock import is_gone

BEAT_SECONDS: Final = 5.0
"""How often a worker says that it lives."""
ALIVE_SECONDS: Final = 20.0
"""A worker that was not heard of for so long is taken for gone."""

_FORGET_SECONDS: Final = 3600.0


class WorkerBook:
    """The workers that serve a journal. Thread-safe."""

    def __init__(self, journal: JournalReader) -> None:
        self._journal = journal

    def beat(self, name: str) -> None:
        """The worker of that name lives. Raises StorageError when the database refuses."""
        with self._journal.begin() as connection:
            now = self._journal.now(connection)
            known = connection.execute(update(workers).where(workers.c.name == name).values(seen=now)).rowcount
            if not known:
                connection.execute(insert(workers).values(name=name, seen=now))
                connection.execute(delete(workers).where(workers.c.seen < now - _FORGET_SECONDS))

    def leave(self, name: str) -> None:
        """The worker of that name has ended. Raises StorageError when the database refuses."""
        with self._journal.begin() as connection:
            connection.execute(delete(workers).where(workers.c.name == name))

    def alive(self, folder: Path | None = None) -> list[str]:
        """The names of those who live. folder: where runs are; a worker of this machine that died is known there."""
        with self._journal.begin() as connection:
            now = self._journal.now(connection)
            names = connection.execute(
                select(workers.c.name).where(workers.c.seen > now - ALIVE_SECONDS).order_by(workers.c.name)
            ).scalars()
            return [name for name in names if folder is None or not is_gone(folder, name, forget=False)]
