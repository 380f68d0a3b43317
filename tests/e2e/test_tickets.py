# SPDX-License-Identifier: Apache-2.0
"""The example of the tickets on a tiny real bundle, killed on the way: every ticket is answered once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import environment
from tests.engine.tiny_bundle import make_bundle
from tests.thoroughness import times

ROOT = Path(__file__).parent.parent.parent
KILLS, TICKETS = times(2, 3), times(80, 200)


def test_every_ticket_is_answered_once_although_the_run_is_killed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    done = subprocess.run(
        [sys.executable, ROOT / "bench" / "pipeline_kills.py", "--model", bundle, "--tickets", str(TICKETS),
         "--kills", str(KILLS), "--batch", "4", "--pause", "0.2", "--out", tmp_path / "record.json"],
        capture_output=True, text=True, check=False, env=environment(), timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["state"], report["answered"], report["kills"]) == ("done", TICKETS, KILLS)
    assert (report["duplicated"], report["missing"]) == (0, 0)
    assert report["same_answers_as_without_kills"]
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8")) == report
