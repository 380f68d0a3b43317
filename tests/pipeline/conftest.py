# SPDX-License-Identifier: Apache-2.0
"""Fixtures that run a pipeline, in this process or in a program of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs_for_tests import Program, pipeline
from stages_for_tests import MODULES

from open_autoglm.pipeline import Packet, StageSpecification, run_pipeline
from open_autoglm.storage import FolderLock


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Packet]:
    """Runs a pipeline in this process, in `tmp_path/run`."""

    def run_here(*stages: StageSpecification, payload: dict[str, Any] | None = None, **options: Any) -> Packet:
        folder = options.pop("folder", tmp_path / "run")
        with FolderLock(folder) as lock:
            packet = Packet("test", payload or {})
            return run_pipeline(pipeline(*stages), packet, folder=folder, modules=MODULES, lock=lock, **options)

    return run_here


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
