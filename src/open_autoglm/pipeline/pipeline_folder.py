# SPDX-License-Identifier: Apache-2.0
"""The pipelines of a folder, by the names of their files: checked in a process of its own, again when they change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError, PipelineError
from open_autoglm.python_path import PYTHON_PATH, python_path
from open_autoglm.storage import explained

_SUFFIXES: Final = (".yaml", ".yml")
_MOST_FILES: Final = 1000
_CHECK_SECONDS: Final = 60.0
_OLD_SECONDS: Final = 60.0

_Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class CheckedFile:
    """A file of the folder.

    name: without its suffix. content: as `PipelineFile.to_dict` has it; None if there are faults, each with the file's
    line and column.
    """

    name: str
    file: str
    content: dict[str, Any] | None = field(repr=False)
    faults: tuple[str, ...] = ()


class PipelineFolder:
    """The files `*.yaml` and `*.yml` that lie in a folder. Thread-safe.

    What was found is kept until a file changes, or for a minute: files elsewhere may be part of a pipeline too.
    clock: seconds, for tests. Raises ConfigurationError if there is no such folder.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        if not folder.is_dir():
            raise ConfigurationError(f"--pipelines: there is no folder {folder}")
        self._folder, self._clock = folder.resolve(), clock
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._looked_at = 0.0
        self._files: dict[str, CheckedFile] = {}

    def files(self) -> list[CheckedFile]:
        """All of them, by name. Raises PipelineError if they cannot be checked, StorageError if not read."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp or self._clock() - self._looked_at > _OLD_SECONDS:
                names = _by_name(stamp)
                results = self._check([files[0] for files in names.values()], {})
                checked = [
                    _checked(name, files, result) for (name, files), result in zip(names.items(), results, strict=True)
                ]
                self._files = {one.name: one for one in _unique(checked)}
                self._stamp, self._looked_at = stamp, self._clock()
            return list(self._files.values())

    def find(self, name: str, settings: Mapping[str, Any] | None = None) -> CheckedFile | None:
        """The file of a name, None if there is none: only names of files that lie there are ever opened.

        settings: as `read_pipeline` takes them. Raises what `files` raises.
        """
        found = next((one for one in self.files() if one.name == name), None)
        if found is None or not settings:
            return found
        return _checked(name, [found.file], self._check([found.file], settings)[0])

    def _look(self) -> _Stamp:
        with explained(self._folder, "read"):
            stamp: list[tuple[str, int, int, int]] = []
            for path in sorted(self._folder.iterdir()):
                if path.suffix in _SUFFIXES and not path.name.startswith(".") and path.is_file():
                    status = path.stat()
                    stamp.append((path.name, status.st_mtime_ns, status.st_size, status.st_ino))
        if len(stamp) > _MOST_FILES:
            raise PipelineError(f"{self._folder} has more than {_MOST_FILES} pipelines; use several folders")
        return tuple(stamp)

    def _check(self, files: list[str], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What `file_check` says about files of the folder."""
        if not files:
            return []
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "open_autoglm.pipeline.file_check"],
            cwd=self._folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, PYTHON_PATH: python_path()},
        )
        request = json.dumps({"files": files, "settings": dict(settings)}).encode()
        try:
            answer, _ = process.communicate(request, timeout=_CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            raise PipelineError(
                f"the pipelines of {self._folder} were not checked within {_CHECK_SECONDS:g} s: a stage that they name "
                "takes too long to import"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        try:
            results: list[dict[str, Any]] = json.loads(answer)
        except ValueError:
            raise PipelineError(
                f"the pipelines of {self._folder} cannot be checked: importing a stage that they name ends the process "
                f"(exit code {process.returncode}); `open-autoglm validate` says more"
            ) from None
        return results


def _by_name(stamp: _Stamp) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for file, *_ in stamp:
        names.setdefault(Path(file).stem, []).append(file)
    return names


def _unique(checked: list[CheckedFile]) -> list[CheckedFile]:
    """Without pipelines whose name or webhook an earlier one has."""
    owners: dict[tuple[str, str], str] = {}
    found: list[CheckedFile] = []
    for one in checked:
        faults: list[str] = []
        if one.content is not None:
            claims = [("name", one.content["name"]), ("webhook", one.content["trigger"].get("webhook"))]
            for kind, value in claims:
                if value is not None and owners.setdefault((kind, value), one.file) != one.file:
                    faults.append(f"{one.file}: {owners[kind, value]} has the {kind} '{value}' too; change one of them")
        found.append(CheckedFile(one.name, one.file, None, tuple(faults)) if faults else one)
    return found


def _checked(name: str, files: list[str], result: Mapping[str, Any]) -> CheckedFile:
    if len(files) > 1:
        return CheckedFile(name, files[0], None, (f"{' and '.join(files)} have one name; rename one",))
    return CheckedFile(name, files[0], result.get("content"), tuple(result.get("faults", ())))
