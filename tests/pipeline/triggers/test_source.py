# SPDX-License-Identifier: Apache-2.0
"""What arrives starts one run, also when it is given again or to two workers, or when a crash comes in between."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.triggers.source import Arrival, PipelineSource, start_runs

CONTENT = {"name": "p", "stages": [{"stage": "a", "module": "m"}]}


class Inbox:
    """A folder: a file is an arrival, and gone when it is acknowledged."""

    def __init__(self, folder: Path, *, crashes: bool = False) -> None:
        self.folder, self.crashes = folder, crashes

    def poll(self) -> Iterable[Arrival]:
        return [Arrival(path.name, {"file": str(path)}) for path in sorted(self.folder.iterdir())]

    def acknowledge(self, arrival: Arrival) -> None:
        if self.crashes:
            raise KeyboardInterrupt
        (self.folder / arrival.key).unlink(missing_ok=True)


def test_each_arrival_starts_one_run(tmp_path: Path) -> None:
    journal = Journal(f"sqlite:///{tmp_path}/x.sqlite")
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    for number in range(10):
        (inbox / f"{number}.json").touch()
    try:
        start_runs(journal, PipelineSource(CONTENT, Inbox(inbox, crashes=True)), str(tmp_path))
    except KeyboardInterrupt:
        assert len(journal.list()) == 1
    started: list[str] = []

    def work() -> None:
        started.extend(start_runs(journal, PipelineSource(CONTENT, Inbox(inbox)), str(tmp_path)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = journal.list()
    assert len(runs) == 10
    assert len(started) == len(set(started)) == 9
    assert sorted(run.packet.payload["file"] for run in runs) == [str(inbox / f"{number}.json") for number in range(10)]
    assert list(inbox.iterdir()) == []
    journal.close()
