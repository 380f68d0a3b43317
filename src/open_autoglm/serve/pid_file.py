# SPDX-License-Identifier: Apache-2.0
"""A file with the number of the server's process, locked for as long as it takes SIGHUP."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from open_autoglm.errors import ConfigurationError
from open_autoglm.storage import explained


class PidFile:
    """Who wants to signal the server looks whether the file is locked: only then does the number mean it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """Lock the file, and leave it empty for now.

        Raises ConfigurationError when another server has it, StorageError when the disk refuses.
        """
        with explained(self._path, "write"):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigurationError(f"another server has {self._path}; give each its own --pid-file") from None
        os.ftruncate(descriptor, 0)
        self._descriptor = descriptor

    def write(self) -> None:
        """Write the number of this process: from now on it may be signalled. Does nothing before `take`."""
        if self._descriptor is not None:
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go of it; it stays, and means nobody."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
