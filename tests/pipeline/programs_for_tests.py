# SPDX-License-Identifier: Apache-2.0
"""What the pipeline's tests share: stages in short, a program that runs a pipeline, and looking at processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_autoglm
from open_autoglm.pipeline import PipelineSpecification, RetrySpecification, StageSpecification

HERE = Path(__file__).parent
SOURCE = Path(open_autoglm.__file__).parent.parent


def stage(name: str, module: str, needs: tuple[str, ...] | None = None, **settings: Any) -> StageSpecification:
    """A stage; `attempts`, `backoff_seconds` and `timeout_seconds` apart from the config."""
    retry = RetrySpecification(settings.pop("attempts", 1), settings.pop("backoff_seconds", 0.05))
    timeout = settings.pop("timeout_seconds", None)
    return StageSpecification(name, module, needs, settings, timeout, retry)


def pipeline(*stages: StageSpecification) -> PipelineSpecification:
    return PipelineSpecification("test", stages)


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


def wait_until(condition: Callable[[], Any], seconds: float = 90.0) -> Any:
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
