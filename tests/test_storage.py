# SPDX-License-Identifier: Apache-2.0
"""Storage: files are whole or absent whatever happens, refusals are explained, a folder has one holder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import open_autoglm
from open_autoglm.errors import RunLockedError, StorageError
from open_autoglm.storage import (
    FolderLock,
    explained,
    read_json,
    replacing,
    sha256_of_file,
    write_atomic,
    write_json,
)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(open_autoglm.__file__).parent.parent)}


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(RuntimeError, match="half way"), replacing(path) as temporary:
        temporary.write_text("new, but")
        raise RuntimeError("half way")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_and_a_kill_see_the_old_or_the_new_file_and_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    code = """
import sys
from pathlib import Path
from open_autoglm.storage import write_json
for number in range(10**9):
    write_json(Path(sys.argv[1]), {"number": number, "text": str(number % 10) * 50_000})
    if number == 0: print("ready", flush=True)
"""
    highest = -1
    for _ in range(5):
        process = start(code, str(path))
        assert first_line(process) == "ready"
        until = time.monotonic() + 0.15
        while time.monotonic() < until:
            value = json.loads(path.read_bytes())
            assert value["text"] == str(value["number"] % 10) * 50_000
            highest = max(highest, value["number"])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        value = json.loads(path.read_bytes())
        assert value["text"] == str(value["number"] % 10) * 50_000
    assert highest > 0


def test_a_full_disk_is_named_and_keeps_the_old_file(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("cannot mount a file system here")
    code = """
import sys
from pathlib import Path
from open_autoglm.errors import StorageError
from open_autoglm.storage import write_atomic
path = Path(sys.argv[1]) / "file.bin"
write_atomic(path, b"old")
try:
    write_atomic(path, bytes(200_000))
except StorageError as error:
    print(error)
print(path.read_bytes(), [entry.name for entry in path.parent.iterdir()])
write_atomic(path, b"room again")
print(path.read_bytes())
"""
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    ran = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", str(tmp_path / "disk"), sys.executable, code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    message, after, again = ran.stdout.splitlines()
    assert message.startswith(f"cannot write {tmp_path}/disk/file.bin: the disk is full; free some space")
    assert after == "b'old' ['file.bin']"
    assert again == "b'room again'"


def test_a_file_size_limit_is_named_too(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from open_autoglm.errors import StorageError
from open_autoglm.storage import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path(sys.argv[1]), bytes(2000))
except StorageError as error:
    print(error)
"""
    output, _ = start(code, str(tmp_path / "file.bin")).communicate(timeout=30)
    assert output == f"cannot write {tmp_path}/file.bin: file too large\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "permission denied; choose another folder"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "input/output error"),
    ],
)
def test_refusals_say_what_to_do(number: int, message: str) -> None:
    with pytest.raises(StorageError, match=f"cannot read x: {message}"), explained(Path("x"), "read"):
        raise OSError(number, os.strerror(number))


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="is a directory"):
        write_atomic(tmp_path / "file", "x")
    (tmp_path / "plain").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(tmp_path / "plain" / "file", "x")


def test_json_comes_back_in_order(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": "日本"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(read_json(tmp_path / "x.json")) == ["b", "a"]
    assert "日本" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_json_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*none\.json: no such file"):
        read_json(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(StorageError, match="not valid JSON"):
        read_json(tmp_path / "half.json")
    (tmp_path / "bytes.json").write_bytes(b'{"a": "\xf1"}')
    with pytest.raises(StorageError, match="not valid JSON"):
        read_json(tmp_path / "bytes.json")
    (tmp_path / "deep.json").write_bytes(b"[" * 100_000)
    with pytest.raises(StorageError, match=r"nested|not valid JSON"):
        read_json(tmp_path / "deep.json")


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_of_file(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with pytest.raises(StorageError, match="cannot read"):
        sha256_of_file(tmp_path / "y")


HOLD = """
import sys
from pathlib import Path
from open_autoglm.storage import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_is_told_the_holders_name_until_it_ends(tmp_path: Path) -> None:
    holder = start(HOLD, str(tmp_path))
    assert first_line(holder) == "held"
    lock = FolderLock(tmp_path)
    with pytest.raises(RunLockedError, match=rf"in use by process {holder.pid} on .*since .*choose another --out"):
        lock.acquire(patience=0.1)
    with pytest.raises(StorageError, match="not locked by this process"):
        _ = lock.descriptor
    holder.kill()
    holder.communicate()
    with lock:
        assert lock.descriptor > 0
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    lock.release()  # a second time does nothing


def test_patience_covers_a_holder_that_is_just_ending(tmp_path: Path) -> None:
    holder = start(HOLD, str(tmp_path))
    assert first_line(holder) == "held"
    sleeper = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {holder.pid}"])
    started = time.monotonic()
    with FolderLock(tmp_path):
        assert 0.1 < time.monotonic() - started < 3.0
    sleeper.wait()
    holder.communicate()


def test_a_child_that_was_given_the_descriptor_keeps_the_lock(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire()
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.descriptor])
    other = subprocess.Popen(["sleep", "60"])
    lock.release()
    with pytest.raises(RunLockedError):
        FolderLock(tmp_path).acquire(patience=0.1)
    child.kill()
    child.wait()
    FolderLock(tmp_path).acquire(patience=0.1)  # the other child did not inherit it
    other.kill()
    other.wait()


def test_of_many_that_try_at_once_one_wins(tmp_path: Path) -> None:
    code = HOLD.replace("lock.acquire()", "lock.acquire(patience=0.2)").replace(
        "import sys\n", "import sys, traceback\n"
    )
    processes = [start(code, str(tmp_path)) for _ in range(5)]
    held = [process for process in processes if first_line(process) == "held"]
    assert len(held) == 1
    for process in processes:
        process.communicate()
    assert sorted(process.returncode for process in processes) == [0, 1, 1, 1, 1]
