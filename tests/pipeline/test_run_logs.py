# SPDX-License-Identifier: Apache-2.0
"""Logs of a run: their last lines, and new lines as they come, whole, bounded, and from nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from open_autoglm.pipeline.run_logs import LogLines, RunLogs


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(data)


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    run = tmp_path / "r"
    logs = RunLogs(run, tmp_path)
    assert logs.follow() == []
    log = run / "stages" / "a" / "item-3-attempt-2.log"
    write(log, "one\n两".encode()[:-1])
    assert logs.follow() == [LogLines("a", 3, 2, ("one",))]
    assert logs.follow() == []
    write(log, "两".encode()[-1:] + b"\n\xff\r\nrest")
    assert logs.follow() == [LogLines("a", 3, 2, ("两", "\ufffd"))]
    write(log, b"\n")
    assert logs.follow() == [LogLines("a", 3, 2, ("rest",))]
    assert RunLogs(run, tmp_path).tails(2) == {"a": LogLines("a", 3, 2, ("\ufffd", "rest"))}
    assert RunLogs(run, tmp_path).tails(0) == {}


def test_long_lines_and_long_logs_are_bounded(tmp_path: Path) -> None:
    run = tmp_path / "r"
    write(run / "stages" / "a" / "attempt-1.log", b"x" * 100_000)
    logs = RunLogs(run, tmp_path)
    (found,) = logs.follow()
    assert [len(line) for line in found.lines] == [2000]
    write(run / "stages" / "a" / "attempt-1.log", b"\nend\n")
    assert logs.follow()[0].lines[-1] == "end"


def test_only_logs_of_runs_in_the_folder_are_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hidden\n")
    stage = tmp_path / "runs" / "r" / "stages" / "a"
    write(stage / "output.json", b"{}\n")
    write(stage / "attempt-x.log", b"x\n")
    (stage / "attempt-1.log").symlink_to(secret)
    os.mkfifo(stage / "attempt-2.log")
    (tmp_path / "runs" / "r" / "stages" / "linked").symlink_to(stage)
    assert RunLogs(tmp_path / "runs" / "r", tmp_path / "runs").follow() == []
    write(stage / "attempt-3.log", b"seen\n")
    assert [one.lines for one in RunLogs(tmp_path / "runs" / "r", tmp_path / "runs").follow()] == [("seen",)]
    assert RunLogs(tmp_path / "runs" / "r", tmp_path / "other").follow() == []
