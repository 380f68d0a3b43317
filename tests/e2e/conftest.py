# SPDX-License-Identifier: Apache-2.0
"""The real program, started as users start it, on a small part of Snips."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from open_autoglm.cli import main

PLAN = ("--steps", "27", "--trials", "2")  # the least that a build may have
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


def run_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`open-autoglm ARGUMENTS` in this process: for what is found wrong before any work."""
    out, err = io.StringIO(), io.StringIO()
    words, code = ["open-autoglm", *map(str, arguments)], 0
    with (
        patch.object(sys, "argv", words),
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
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
