# SPDX-License-Identifier: Apache-2.0
"""What the pipeline's tests share: running one in this process or in a program of its own, and looking at processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stages_for_tests import MODULES

import open_autoglm
from open_autoglm.pipeline import Packet, PipelineSpecification, RetrySpecification, StageSpecification, run_pipeline
from open_autoglm.storage import FolderLock

HERE = Path(__file__).parent
SOURCE = Path(open_autoglm.__file__).parent.parent


def stage(name: str, module: str, needs: tuple[str, ...] | None = None, **settings: Any) -> StageSpecification:
    """A stage; `attempts`, `backoff_seconds` and `timeout_seconds` apart from the config."""
    retry = RetrySpecification(settings.pop("attempts", 1), settings.pop("backoff_seconds", 0.05))
    timeout = settings.pop("timeout_seconds", None)
    return StageSpecification(name, module, needs, settings, timeout, retry)


def pipeline(*stages: StageSpecification) -> PipelineSpecification:
    return PipelineSpecification("test", stages)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Packet]:
    """Runs a pipeline in this process, in `tmp_path/run`."""

    def run_here(*stages: StageSpecification, payload: dict[str, Any] | None = None, **options: Any) -> Packet:
        folder = options.pop("folder", tmp_path / "run")
        with FolderLock(folder) as lock:
            packet = Packet("test", payload or {})
            return run_pipeline(pipeline(*stages), packet, folder=folder, modules=MODULES, lock=lock, **options)

    return run_here


class Program:
    """`run_for_tests.py` on one folder, started as often as one likes."""

    def __init__(self, folder: Path, specification: PipelineSpecification) -> None:
        self.folder = folder / "run"
        self.specification = folder / "specification.json"
        self.specification.write_text(json.dumps(specification.to_dict()))
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "run_for_tests.py"), str(self.specification), str(self.folder), *arguments],
            env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def finish(self, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
        process = self.start(*arguments, **environment)
        output, errors = process.communicate(timeout=60)
        return process.returncode, json.loads(output), errors

    def records(self) -> list[list[str]]:
        """What the stages wrote to record.txt: what, stage, attempt, process id."""
        path = self.folder / "record.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def stage_processes(self) -> list[int]:
        """The guards and workers of this folder that are alive."""
        return [pid for pid in all_processes() if "/stages/" in command_of(pid) and str(self.folder) in command_of(pid)]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    made: list[Program] = []

    def make(*stages: StageSpecification, folder: Path = tmp_path) -> Program:
        folder.mkdir(parents=True, exist_ok=True)
        made.append(Program(folder, pipeline(*stages)))
        return made[-1]

    yield make
    for one in made:
        for process in one.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


def all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def command_of(pid: int) -> str:
    """Its command line, empty if it is dead; a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return bool(command_of(pid))
