# SPDX-License-Identifier: Apache-2.0
"""The real program, started as users start it, on a small part of Snips."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = ("--steps", "36", "--trials", "2")
SNIPS = Path(__file__).parent.parent.parent / "examples" / "snips"


def run_command(*arguments: str | Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`open-autoglm ARGUMENTS`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "open_autoglm", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(),
    )


def environment() -> dict[str, str]:
    """One thread, so that sums are taken in one order and builds can be compared bit by bit."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def last_json(output: str) -> dict:
    """The JSON object on the last line of stdout."""
    return json.loads(output.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def small_snips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 400 / 24 / 16 rows of Snips."""
    folder = tmp_path_factory.mktemp("small") / "snips"
    folder.mkdir()
    for split, rows in (("train", 400), ("valid", 24), ("test", 16)):
        lines = (SNIPS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def built(small_snips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A run folder after a small build by steps, and what the build printed."""
    out = tmp_path_factory.mktemp("runs") / "small"
    done = run_command("build", small_snips, "--out", out, *PLAN, "--json")
    assert done.returncode == 0, done.stderr
    return out, last_json(done.stdout)
