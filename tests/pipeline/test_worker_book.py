# SPDX-License-Identifier: Apache-2.0
"""Who is known to live: who has said so of late, and has not left, and whose lock is held."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import update

from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_tables import workers
from open_autoglm.pipeline.worker_book import ALIVE_SECONDS, WorkerBook
from open_autoglm.pipeline.worker_lock import WorkerLock, is_gone


def test_workers_live_until_they_leave_die_or_fall_silent(tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{tmp_path}/pipelines.sqlite")
    book = WorkerBook(journal)
    locks = [WorkerLock(tmp_path) for _ in range(2)]
    first, second = (lock.name for lock in locks)
    assert book.alive(tmp_path) == []
    for name in (first, second, first, "elsewhere"):
        book.beat(name)
    assert book.alive(tmp_path) == sorted([first, second, "elsewhere"])
    os.close(locks[0].descriptor)  # as the system does it for one that is killed
    assert book.alive(tmp_path) == sorted([second, "elsewhere"])
    with journal.begin() as connection:
        silent = workers.c.seen - ALIVE_SECONDS - 1
        connection.execute(update(workers).where(workers.c.name == "elsewhere").values(seen=silent))
    assert book.alive(tmp_path) == [second]
    book.leave(second)
    assert book.alive() == [first], "without the folder nobody knows that it died, until it falls silent"
    assert is_gone(tmp_path, first), "who takes its runs over can still see that it is gone"
    locks[1].release()
    journal.close()
