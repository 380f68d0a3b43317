# SPDX-License-Identifier: Apache-2.0
"""Who is still alive: a file that a worker and all its stage processes hold locked while any of them lives.

A lease alone would let a worker that was killed keep its runs until the lease ends. On the machine where it ran, the
lock says at once that it is gone, and that no process of its stages is left either.
"""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from pathlib import Path
from typing import Final

from open_autoglm.storage import explained

_FOLDER: Final = ".workers"


class WorkerLock:
    """The lock of one worker. folder: where the runs are. Raises StorageError when the disk refuses.

    name: unique, with the machine and the process in it, for people to read.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._path = _lock_path(folder, self.name)
        with explained(self._path, "write"):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        """The worker has ended properly."""
        self._path.unlink(missing_ok=True)
        os.close(self.descriptor)


def is_gone(folder: Path, name: str, *, forget: bool = True) -> bool:
    """Whether the worker of that name is known to have ended with all its processes; False if nobody can say.

    forget: take its lock away if so. Only who takes its runs over may: nobody can say it again afterwards.
    """
    path = _lock_path(folder, name)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        if forget:
            path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _lock_path(folder: Path, name: str) -> Path:
    return folder / _FOLDER / f"{name}.lock"
