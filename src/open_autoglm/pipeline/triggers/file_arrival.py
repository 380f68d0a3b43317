# SPDX-License-Identifier: Apache-2.0
"""Files that arrive in a folder: each is taken once it has stopped growing, by one worker, and starts one run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline.triggers.source import Arrival
from open_autoglm.storage import explained, sync_folder

TAKEN_FOLDER: Final = ".taken"
_ACKNOWLEDGED: Final = ".acknowledged"


class FileArrival:
    """A `TriggerSource` of the files that fit a pattern such as `inbox/*.jsonl`.

    A file whose size and time stay the same for `quiet` seconds is moved to `.taken/` beside it, under a name of its
    own. Moving is atomic: of several workers one has it. The run gets its new path in the payload's `files`, as
    `file_source` takes them. A worker that dies before the run is on disk leaves it unacknowledged, and it is given
    again.
    clock: seconds, for tests. Raises ConfigurationError for a pattern whose folder is one, too.
    """

    def __init__(self, pattern: str, *, quiet: float = 2.0, clock: Callable[[], float] = time.monotonic) -> None:
        path = Path(pattern)
        if any(mark in str(path.parent) for mark in "*?["):
            raise ConfigurationError(f"trigger.file '{pattern}': only the last part may be a pattern")
        self._folder, self._name, self._quiet, self._clock = path.parent.resolve(), path.name, quiet, clock
        self._taken = self._folder / TAKEN_FOLDER
        self._seen: dict[Path, tuple[tuple[int, int, int], float]] = {}

    def poll(self) -> Iterator[Arrival]:
        """Take what is ready, and give all that is not acknowledged."""
        if not self._folder.is_dir():
            return
        with explained(self._folder, "read"):
            found = {path for path in self._folder.glob(self._name) if path.is_file() and not path.is_symlink()}
            for path in sorted(found):
                self._look(path)
            self._seen = {path: known for path, known in self._seen.items() if path in found}
            waiting = sorted(self._taken.iterdir()) if self._taken.is_dir() else []
            for path in waiting:
                if path.suffix != _ACKNOWLEDGED and not self._mark(path).exists():
                    yield Arrival(path.name, {"files": [str(path)]})

    def acknowledge(self, arrival: Arrival) -> None:
        """See `TriggerSource`. The file stays in `.taken/` for its run."""
        path = self._taken / Path(arrival.key).name
        with explained(path, "write"):
            self._mark(path).touch()
            sync_folder(self._taken)

    def _look(self, path: Path) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:  # another worker took it
            return
        sign = (status.st_size, status.st_mtime_ns, status.st_ino)
        known = self._seen.get(path)
        if known is None or known[0] != sign:
            self._seen[path] = (sign, self._clock())
        elif self._clock() - known[1] >= self._quiet:
            text = f"{path.name} {sign}".encode()
            self._taken.mkdir(exist_ok=True)
            try:
                path.rename(self._taken / f"{hashlib.sha256(text).hexdigest()[:16]}-{path.name}")
            except FileNotFoundError:
                return
            sync_folder(self._taken)

    def _mark(self, path: Path) -> Path:
        return path.with_name(path.name + _ACKNOWLEDGED)
