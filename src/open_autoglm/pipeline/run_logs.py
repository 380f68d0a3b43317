# SPDX-License-Identifier: Apache-2.0
"""What the stages of a run have logged: its last lines, and those that come."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"(?:item-(\d{1,9})-)?attempt-(\d{1,9})\.log")
_MOST_FILES: Final = 100
_MOST_BYTES: Final = 64 * 1024
_LONGEST_LINE: Final = 2000


@dataclass(frozen=True)
class LogLines:
    """Lines of one attempt's log."""

    stage: str
    number: int
    attempt: int
    lines: tuple[str, ...]


class RunLogs:
    """The logs of one run. folder: its own. Of many logs, the hundred that were written last are looked at.

    A folder outside of `runs_folder` has none: what is read here is shown to others.
    """

    def __init__(self, folder: Path, runs_folder: Path) -> None:
        self._stages = folder / "stages"
        self._is_ours = folder.resolve().is_relative_to(runs_folder.resolve())
        self._read: dict[Path, int] = {}

    def tails(self, lines: int) -> dict[str, LogLines]:
        """The last lines of each stage's latest log."""
        found: dict[str, LogLines] = {}
        for path, stage, number, attempt in self._files() if lines else ():
            if stage not in found:
                text, _ = _read_from(path, None)
                last = tuple(_short(line) for line in text.splitlines()[-lines:])
                found[stage] = LogLines(stage, number, attempt, last)
        return found

    def follow(self) -> list[LogLines]:
        """What has been written since the last call, in whole lines; at first, the end of each log."""
        news: list[LogLines] = []
        for path, stage, number, attempt in self._files():
            text, position = _read_from(path, self._read.get(path))
            whole, newline, rest = text.rpartition("\n")
            if not newline and len(text) >= _MOST_BYTES // 4:  # a line without end is shown in pieces
                whole, newline, rest = text, "\n", ""
            if newline:
                self._read[path] = position - len(rest.encode("utf-8", "surrogateescape"))
                news.append(LogLines(stage, number, attempt, tuple(map(_short, whole.split("\n")))))
        return news

    def _files(self) -> list[tuple[Path, str, int, int]]:
        """The logs, the one that was written last first."""
        found = sorted(self._all(), reverse=True)
        return [(path, stage, number, attempt) for _, path, stage, number, attempt in found[:_MOST_FILES]]

    def _all(self) -> Iterator[tuple[int, Path, str, int, int]]:
        if not self._is_ours:
            return
        try:
            stages = [entry for entry in os.scandir(self._stages) if entry.is_dir(follow_symlinks=False)]
            for stage in stages:
                for entry in os.scandir(stage.path):
                    matched = _NAME.fullmatch(entry.name)
                    if matched and entry.is_file(follow_symlinks=False):
                        written = entry.stat(follow_symlinks=False).st_mtime_ns
                        yield written, Path(entry.path), stage.name, int(matched[1] or 0), int(matched[2])
        except FileNotFoundError:  # no stage has begun, or the run's folder was cleared away
            return


def _read_from(path: Path, position: int | None) -> tuple[str, int]:
    """What follows a position in bytes, or the end of the file, and where that ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # it is gone, or is no file of ours any more
        return "", position or 0
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "", position or 0
        if position is None or position > status.st_size:
            position = max(0, status.st_size - _MOST_BYTES)
        file.seek(position)
        data = file.read(_MOST_BYTES)
    return data.decode("utf-8", "surrogateescape"), position + len(data)


def _short(line: str) -> str:
    line = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").rstrip("\r")
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."
