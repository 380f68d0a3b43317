# SPDX-License-Identifier: Apache-2.0
"""The example of the handbook, run as users run it, with a tiny real bundle in place of a chat model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import environment
from tests.engine.tiny_bundle import DIALOGUE, make_bundle

ROOT = Path(__file__).parent.parent.parent
BEST = {1: "returns.md", 2: "hours.md", 3: "warranty.md", 4: "warranty.md"}


def test_every_question_is_answered_or_held_and_the_right_documents_are_found(tmp_path: Path) -> None:
    variables = {
        "HANDBOOK_MODEL": str(make_bundle(tmp_path, DIALOGUE)), "HANDBOOK_INDEX": str(tmp_path / "index"),
        "HANDBOOK_ANSWERS": str(tmp_path / "answers.jsonl"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "open_autoglm", "run", "examples/handbook/handbook.yaml", "--folder", tmp_path / "runs",
         "--set", "find.config.words=20", "--set", "find.config.overlap=5", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, **environment(), **variables}, timeout=240,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    payload = json.loads(done.stdout.strip().splitlines()[-1])["payload"]
    held, answered = payload["held"], payload["records"]
    assert sorted(record["id"] for record in [*held, *answered]) == [1, 2, 3, 4]
    assert all(record["confidence"] < 0.8 for record in held)
    for record in (*held, *answered):
        assert record["passages"][0]["document"] == BEST[record["id"]]
        assert record["asked"].endswith(record["question"])
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [record["id"] for record in answered]
    told = f"tell: {len(answered)} questions answered, {len(held)} wait for a human"
    assert (told in done.stderr) == bool(held)
