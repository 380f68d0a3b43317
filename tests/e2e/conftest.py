# SPDX-License-Identifier: Apache-2.0
"""The real program, started as users start it, on a small part of Snips."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml

from open_autoglm.build_pipeline import STEPS
from open_autoglm.cli import main
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.stage import load_target, make_stage, packets_of

SPACE = Path(__file__).with_name("small_space.yaml")
PLAN = ("--steps", "27", "--trials", "2", "--space", str(SPACE))  # the least that a build may have
SNIPS = Path(__file__).parent.parent.parent / "examples" / "snips"


def run_command(*arguments: str | Path, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    """`open-autoglm ARGUMENTS`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "open_autoglm", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(),
    )


def run_here(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    """`open-autoglm ARGUMENTS` in this process, which need not import anything again. text: on its standard input."""
    out, err = io.StringIO(), io.StringIO()
    words, code = ["open-autoglm", *map(str, arguments)], 0
    with (
        patch.object(sys, "argv", words),
        patch.object(sys, "stdin", io.StringIO(text)),
        patch.dict(os.environ),
        redirect_stdout(out),
        redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def build_here(*arguments: str | Path) -> dict:
    """`open-autoglm build ARGUMENTS`, its steps one after the other in this process; returns what the last one says.

    For what a build makes of its data: that each step has a process of its own, and goes on after it died, is for the
    tests of `build` itself.
    """
    shown = run_here("build", *arguments, "--print-pipeline")
    assert shown.returncode == 0, shown.stderr
    settings = yaml.safe_load(shown.stdout)["pipeline"][0]["config"]
    folder = Path(settings["out"])
    folder.mkdir(parents=True)
    packet = Packet(folder.name, {"settings": settings})
    for name, target in STEPS.items():
        log, events = logging.getLogger("test"), EventLog(folder)
        context = StageContext(folder, name, {}, 1, f"{folder.name}/{name}", None, log, events)
        result = make_stage(load_target(target), {}).invoke(packet, context)
        [packet] = packets_of(result, packet, name)
    return packet.payload["bundle"]


def environment() -> dict[str, str]:
    """One thread, so that sums are taken in one order and builds can be compared bit by bit."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def last_json(output: str) -> dict:
    """The JSON object on the last line of stdout."""
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run have in common."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "e2e"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def small_snips(shared: Path) -> Path:
    """A folder with 400 / 16 / 12 rows of Snips."""
    folder = shared / "snips"
    with locked(shared / "snips.lock"):
        if not folder.exists():
            folder.mkdir()
            for split, rows in (("train", 400), ("valid", 16), ("test", 12)):
                lines = (SNIPS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
                (folder / f"{split}.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def built(small_snips: Path, shared: Path) -> tuple[Path, dict]:
    """A run folder after a small build by steps, and what the build printed: one for all processes of the tests."""
    out, said = shared / "small", shared / "said.json"
    with locked(shared / "built.lock"):
        if not said.exists():
            done = run_command("build", small_snips, "--out", out, *PLAN, "--json")
            assert done.returncode == 0, done.stderr
            said.write_text(json.dumps(last_json(done.stdout)))
    return out, json.loads(said.read_text())


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of 2 MB at `folder`, or just a folder, with a warning, where none can be mounted. Yields which it is."""
    folder.mkdir()
    is_mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if is_mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
        is_mounted = subprocess.run(command, check=False).returncode == 0
    if not is_mounted:
        warnings.warn("no small disk can be mounted here: what a build does on a full one is not seen", stacklevel=3)
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def make_room(folder: Path) -> None:
    """The disk at `folder` is large from now on."""
    subprocess.run(["mount", "-o", "remount,size=400m", folder], check=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
