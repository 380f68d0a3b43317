# SPDX-License-Identifier: Apache-2.0
"""A worker as users start it, for a pipeline that a file starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PIPELINE = """\
name: inbox
trigger: {file: inbox/*.jsonl}
pipeline:
- {stage: read, module: file_source}
- {stage: clean, module: text_cleaner, config: {remove_html: true}}
- {stage: write, module: file_sink, config: {path: out/}}
"""


def test_a_file_that_arrives_starts_one_run(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox.yaml").write_text(PIPELINE)
    worker = subprocess.Popen(
        [sys.executable, "-m", "open_autoglm", "worker", "inbox.yaml"], cwd=tmp_path, env=dict(os.environ),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        (tmp_path / "inbox" / "a.jsonl").write_text('{"id": 1, "body": "<b>hello</b>"}\n')
        deadline = time.monotonic() + 120
        while not (written := list((tmp_path / "out").glob("*.jsonl"))):
            assert worker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=60)
    assert json.loads(written[0].read_text()) == {"id": 1, "body": "hello"}, errors
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 1
    assert list((tmp_path / "inbox").glob("*.jsonl")) == []
