# SPDX-License-Identifier: Apache-2.0
"""Files that survive a crash: written whole or not at all, and folders that one process holds at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import RunLockedError, StorageError

_LOCK_NAME: Final = ".lock"
_RETRY_SECONDS: Final = 0.05


@contextlib.contextmanager
def explained(path: Path, action: str) -> Iterator[None]:
    """Turn what the disk refuses inside the block into a StorageError that says what to do.

    action: a verb in its base form, such as `write`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "the disk is full; free some space and run the same command again, it continues where it stopped"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "permission denied; choose another folder or change its rights"
        else:
            advice = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot {action} {path}: {advice}") from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content`: a reader, now or after a crash, sees the old file or the new one, whole.

    Raises StorageError when the disk refuses.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on leaving, sync it to disk and rename it onto `path`.

    For libraries that write a file by name. Nothing is left behind when the block raises.
    Raises StorageError when the disk refuses.
    """
    with explained(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_private(path: Path, content: str) -> None:
    """`write_atomic` for secrets: only the owner reads the file, and a folder that has to be made.

    Raises StorageError when the disk refuses.
    """
    with explained(path, "write"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)  # 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of readable, key-ordered JSON."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises StorageError when it cannot be read or is not JSON."""
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:  # bytes that are no text are one, too
        raise StorageError(f"cannot read {path}: it is not valid JSON ({error})") from None
    except RecursionError:
        raise StorageError(f"cannot read {path}: it is nested too deeply") from None


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    with explained(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """A folder held by one process, and by those child processes to which `descriptor` is passed.

    The kernel lets go when the last holder ends, however it ends. `acquire` waits up to `patience` seconds, which
    covers the moment in which the children of a killed process are still ending.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _LOCK_NAME
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The open file that carries the lock. Raises StorageError when it is not held."""
        if self._descriptor is None:
            raise StorageError(f"{self._path.parent} is not locked by this process")
        return self._descriptor

    def acquire(self, *, patience: float = 3.0) -> None:
        """Take the lock. Raises RunLockedError, with the holder's name, if another process keeps it."""
        with explained(self._path, "write"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(_RETRY_SECONDS)
                    continue
                holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip() or "an unnamed process"
                os.close(descriptor)
                raise RunLockedError(
                    f"{self._path.parent} is in use by {holder}; wait for it, stop it, or choose another --out"
                ) from None
        with explained(self._path, "write"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _own_name().encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; does nothing when the lock is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _own_name() -> str:
    command = " ".join(Path(part).name if index == 0 else part for index, part in enumerate(sys.argv[:3]))
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} ({command}, since {started})"
