# SPDX-License-Identifier: Apache-2.0
"""The event log of a run: one JSON object a line, appended by several processes without tearing a line."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import StorageError
from open_autoglm.pipeline.packet import json_object
from open_autoglm.storage import explained

EVENTS_NAME: Final = "events.jsonl"
_BLOCK: Final = 1 << 20


class EventLog:
    """RUN/events.jsonl, for writing and for following.

    Each event is one `write` on a descriptor opened with O_APPEND, which the kernel never mixes with another's.
    Raises StorageError when the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_NAME
        with explained(self._path, "write"):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._read_up_to = 0
        self._unfinished = b""

    def append(self, stage: str | None, event: Mapping[str, Any]) -> dict[str, Any]:
        """Write `event` with the time (UTC, milliseconds) and the stage, None for the whole run; returns all of it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        whole = {"time": now, "stage": stage}
        whole.update(
            (key, value) for key, value in json_object(event, "event", null_for_nan=True).items() if key not in whole
        )
        line = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        with explained(self._path, "write"):
            written = os.write(self._descriptor, line)
            if written < len(line):
                # The disk filled up inside the line. A second write either ends the line or says why it cannot.
                os.write(self._descriptor, b"\n")
                raise StorageError(f"cannot write {self._path}: the disk is full; free some space and run it again")
        return whole

    def end_torn_line(self) -> None:
        """Close a line that a dying process or a full disk left unfinished, so that the next event stands alone.

        Call it while nobody else writes.
        """
        with explained(self._path, "write"):
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")

    def skip_to_end(self) -> None:
        """Make `follow` start after what has been written until now."""
        self._read_up_to = os.fstat(self._descriptor).st_size
        self._unfinished = b""

    def follow(self) -> list[dict[str, Any]]:
        """The events written since the last call, by any process, in their order; torn lines are left out."""
        events: list[dict[str, Any]] = []
        with explained(self._path, "read"):
            while block := os.pread(self._descriptor, _BLOCK, self._read_up_to):
                self._read_up_to += len(block)
                *lines, self._unfinished = (self._unfinished + block).split(b"\n")
                for line in lines:
                    try:
                        event = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(event, dict):
                        events.append(event)
        return events

    def close(self) -> None:
        """Close the file; the log must not be used any more."""
        os.close(self._descriptor)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Every event of the run in `folder`, oldest first; none if it has no log. Raises StorageError."""
    if not (folder / EVENTS_NAME).exists():
        return []
    log = EventLog(folder)
    try:
        return log.follow()
    finally:
        log.close()
