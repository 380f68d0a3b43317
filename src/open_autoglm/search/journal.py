# SPDX-License-Identifier: Apache-2.0
"""Optuna's storage made transactional: what a killed process left half done is cut off and done again.

Optuna's journal is a file of lines that only grows. A commit is its length, written down atomically; opening cuts
the file back to the last commit. Trials, their parameters and their pruning then always change as a whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from open_autoglm.storage import explained, read_json, write_json

_JOURNAL: Final = "trials.journal"
_COMMIT: Final = "trials.commit.json"


class _HeldByRun(JournalFileOpenLock):
    """No lock of its own: the whole run folder is locked already."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class CommittedJournal:
    """The journal of one search, in one folder that this process holds locked."""

    def __init__(self, folder: Path) -> None:
        self._journal, self._commit = folder / _JOURNAL, folder / _COMMIT
        with explained(self._journal, "write"):
            folder.mkdir(parents=True, exist_ok=True)
            length = int(read_json(self._commit)["bytes"]) if self._commit.exists() else 0
            with self._journal.open("ab") as file:
                file.truncate(length)
        self.storage = JournalStorage(JournalFileBackend(str(self._journal), lock_obj=_HeldByRun(str(self._journal))))

    def commit(self) -> None:
        """Keep everything written so far. Raises StorageError when the disk refuses."""
        with explained(self._journal, "write"), self._journal.open("rb+") as file:
            os.fsync(file.fileno())
            length = file.seek(0, os.SEEK_END)
        write_json(self._commit, {"bytes": length})
