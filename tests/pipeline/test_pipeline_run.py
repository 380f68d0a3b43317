# SPDX-License-Identifier: Apache-2.0
"""Pipelines run in this process: order, packets, retries, time limits, failures and going on after them."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from programs_for_tests import SOURCE, is_alive, pipeline, stage
from stages_for_tests import MODULES

from open_autoglm.errors import DataError, PipelineError, StorageError, TrainingError
from open_autoglm.pipeline import Packet, read_events, run_pipeline
from open_autoglm.storage import FolderLock

Run = Callable[..., Packet]


def states(folder: Path, name: str | None) -> list[str]:
    return [event["state"] for event in read_events(folder) if event["stage"] == name and "state" in event]


def test_a_chain_passes_packets_on_and_is_done_once(run: Run, tmp_path: Path) -> None:
    stages = [stage("a", "append", value=1), stage("b", "append", value=2), stage("c", "append", value=3)]
    events: list[dict] = []
    result = run(*stages, payload={"x": 0}, on_event=events.append)
    assert result.payload == {"x": 0, "a": 1, "b": 2, "c": 3}
    folder = tmp_path / "run"
    assert events == read_events(folder)
    assert states(folder, "b") == ["waiting", "running", "done"]
    assert states(folder, None) == ["running", "done"]
    order = [(event["stage"], event["state"]) for event in events if event["state"] in ("running", "done")]
    assert order == [(None, "running"), *[(s, w) for s in "abc" for w in ("running", "done")], (None, "done")]
    assert all(event["time"].endswith("Z") for event in events)

    before = (folder / "record.txt").read_text()
    started = time.monotonic()
    assert run(*stages, payload={"x": 0}) == result
    assert time.monotonic() - started < 2
    assert (folder / "record.txt").read_text() == before
    assert read_events(folder) == events


def test_a_diamond_runs_side_by_side_and_joins_by_name(run: Run, tmp_path: Path) -> None:
    result = run(
        stage("a", "append", ()),
        stage("b", "wait_for_file", ("a",), file="c.here"),
        stage("c", "wait_for_file", ("a",), file="b.here", timeout_seconds=20),
        stage("d", "append", ("b", "c"), value=9),
        payload={"x": 0},
    )
    assert result.payload == {"b": {"stage": "b"}, "c": {"stage": "c"}, "d": 9}


def test_several_last_stages_give_their_payloads_by_name(run: Run) -> None:
    result = run(stage("a", "append", ()), stage("b", "append", ()), payload={"x": 0})
    assert result.payload == {"a": {"x": 0, "a": 1}, "b": {"x": 0, "b": 1}}


def test_what_a_stage_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    folder = tmp_path / "odd folder ? % # ü"
    result = run(stage("a", "show_context", timeout_seconds=50, depth=[1, {"k": None}]), folder=folder)
    told = result.payload
    assert told["folder"] == str(folder)
    assert told["stage_folder"] == str(folder / "stages" / "a")
    assert (told["stage"], told["attempt"], told["config"]) == ("a", 1, {"depth": [1, {"k": None}]})
    assert 30 < told["left"] <= 50
    assert told["key"].endswith("/a")
    assert told["python_path"] == "/somewhere"
    assert result.metadata == {"seen": True}


def test_fails_twice_then_works(run: Run, tmp_path: Path) -> None:
    started = time.monotonic()
    result = run(stage("a", "fail_until", attempt=3, attempts=3, backoff_seconds=0.2))
    assert result.payload == {"a": 3}
    assert time.monotonic() - started > 0.2 + 0.4
    folder = tmp_path / "run"
    assert states(folder, "a") == ["waiting", "running", "retried", "running", "retried", "running", "done"]
    retried = [event for event in read_events(folder) if event.get("state") == "retried"]
    assert [event["wait_seconds"] for event in retried] == [0.2, 0.4]
    assert retried[1]["reason"] == "ConnectionError: nobody answers (attempt 2)"
    assert "Traceback" in (folder / "stages/a/attempt-2.log").read_text()


def test_gives_up_after_the_last_attempt(run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"stage 'a' failed after 2 attempts: ValueError: the ceiling.*attempt-2\.log"
    ):
        run(stage("a", "boom", attempts=2), stage("b", "append"))
    assert states(tmp_path / "run", "a") == ["waiting", "running", "retried", "running", "failed"]
    assert states(tmp_path / "run", "b") == ["waiting"]
    assert states(tmp_path / "run", None) == ["running", "failed"]


def test_an_error_of_ours_keeps_class_and_message_and_is_not_tried_again(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(stage("a", "own_error", kind="ours", attempts=5))
    assert str(caught.value) == "the loss is not a number at step 12; lower the learning rate"
    assert states(tmp_path / "run", "a") == ["waiting", "running", "failed"]
    with pytest.raises(DataError) as other:  # the nearest class that is known here
        run(stage("a", "own_error", kind="own"), folder=tmp_path / "other")
    assert type(other.value) is DataError
    assert str(other.value) == "line 7 of x.csv has 3 columns, not 4"


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        ("kill_itself", {"signal": "SIGKILL"}, "signal 9.*memory"),
        ("kill_itself", {"signal": "SIGSEGV"}, "SIGSEGV"),
        ("exit_quietly", {}, "exit code 3"),
        ("not_a_packet", {}, "returned a dict"),
        ("change_session", {}, "session_id"),
    ],
)
def test_a_stage_that_breaks_does_not_break_the_run(run: Run, module: str, settings: dict, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        run(stage("a", module, **settings))


def test_a_time_limit_ends_the_whole_process_tree(run: Run, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"time limit of 1\.5 s"):
        run(stage("a", "grandchildren", timeout_seconds=1.5))
    pids = [int(pid) for pid in (tmp_path / "run/pids.txt").read_text().split()]
    assert len(pids) == 3
    assert not [pid for pid in pids if is_alive(pid)]


def test_processes_that_a_stage_leaves_behind_end_with_it(run: Run, tmp_path: Path) -> None:
    run(stage("a", "grandchildren", then="return"))
    assert not [pid for pid in (tmp_path / "run/pids.txt").read_text().split() if is_alive(int(pid))]


def test_a_failed_stage_is_run_again_and_those_before_it_are_not(run: Run, tmp_path: Path) -> None:
    cure = tmp_path / "cure"
    stages = [stage("a", "append"), stage("b", "fail_until", file=str(cure)), stage("c", "append")]
    for _ in range(2):
        with pytest.raises(DataError, match="the file is not there"):
            run(*stages)
    cure.touch()
    assert run(*stages).payload == {"a": 1, "b": 3, "c": 1}
    record = (tmp_path / "run/record.txt").read_text().splitlines()
    assert [line.rsplit(" ", 1)[0] for line in record] == [
        "start a 1", "end a 1", "start b 1", "start b 2", "start b 3", "start c 1", "end c 1",
    ]  # fmt: skip
    assert states(tmp_path / "run", "b") == ["waiting", "running", "failed", "running", "failed", "running", "done"]


def test_a_failure_lets_running_branches_finish_and_keeps_them(run: Run, tmp_path: Path) -> None:
    cure = tmp_path / "cure"
    stages = [
        stage("slow", "append", (), seconds=0.6),
        stage("broken", "fail_until", (), file=str(cure)),
        stage("last", "append", ("slow", "broken")),
    ]
    with pytest.raises(DataError):
        run(*stages)
    assert states(tmp_path / "run", "slow")[-1] == "done"
    cure.touch()
    run(*stages)
    starts = [line for line in (tmp_path / "run/record.txt").read_text().splitlines() if line.startswith("start slow")]
    assert len(starts) == 1


def test_another_specification_is_refused_with_the_difference(run: Run, tmp_path: Path) -> None:
    run(stage("a", "append", value=1, deep={"rate": 0.1}), payload={"file": "x"})
    before = (tmp_path / "run/events.jsonl").read_text()
    for stages, message in [
        (
            [stage("a", "append", value=1, deep={"rate": 0.2})],
            r"stage 'a': config\.deep\.rate was 0\.1, now it is 0\.2",
        ),
        ([stage("a", "append", value=True, deep={"rate": 0.1})], r"config\.value was 1, now it is True"),
        ([stage("a", "append", value=1)], r"config\.deep was .*now it is not given"),
        ([stage("a", "boom", value=1, deep={"rate": 0.1})], "module was append, now it is boom"),
        ([stage("b", "append", value=1, deep={"rate": 0.1})], "stage 'a' is gone"),
        ([stage("a", "append", value=1, deep={"rate": 0.1}), stage("b", "append")], "stage 'b' is new"),
    ]:
        with pytest.raises(PipelineError, match=message + ".*choose another --out"):
            run(*stages, payload={"file": "x"})
    with pytest.raises(PipelineError, match=r"the input\.file was 'x', now it is 'y'"):
        run(stage("a", "append", value=1, deep={"rate": 0.1}), payload={"file": "y"})
    assert (tmp_path / "run/events.jsonl").read_text() == before


def test_patience_may_change_between_calls(run: Run) -> None:
    with pytest.raises(PipelineError, match="time limit"):
        run(stage("a", "append", seconds=0.6, timeout_seconds=0.3))
    assert run(stage("a", "append", seconds=0.6, timeout_seconds=30, attempts=2)).payload == {"a": 1}


def test_only_listed_modules_are_run(run: Run, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"unknown module 'apend'; did you mean 'append'\?"):
        run(stage("a", "apend"))
    with pytest.raises(PipelineError, match="unknown module 'os:system'"):
        run(stage("a", "os:system"))


def test_the_folder_must_be_locked(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not locked"):
        run_pipeline(
            pipeline(stage("a", "append")), Packet("s"), folder=tmp_path, modules=MODULES, lock=FolderLock(tmp_path)
        )


def test_works_in_a_thread_and_two_threads_take_turns(run: Run, tmp_path: Path) -> None:
    results: dict[int, Packet] = {}

    def one(number: int) -> None:
        results[number] = run(stage("a", "append", value=number), folder=tmp_path / str(number))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {number: packet.payload for number, packet in results.items()} == {0: {"a": 0}, 1: {"a": 1}}
    assert [thread.name for thread in threading.enumerate() if "dbos" in thread.name or "queue" in thread.name] == []


def test_an_error_in_on_event_stops_the_run_and_it_can_be_continued(run: Run, tmp_path: Path) -> None:
    def complain(event: dict) -> None:
        if event.get("state") == "running" and event["stage"] == "b":
            raise RuntimeError("the screen is gone")

    stages = [stage("a", "append"), stage("b", "append", seconds=0.8)]
    with pytest.raises(RuntimeError, match="the screen is gone"):
        run(*stages, on_event=complain)
    assert run(*stages).payload == {"a": 1, "b": 1}


def test_the_database_is_safe_and_holds_json(run: Run, tmp_path: Path) -> None:
    run(stage("a", "append", value="äöü"))
    database = tmp_path / "run/pipeline.sqlite"
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        outputs = connection.execute("SELECT output, serialization FROM operation_outputs").fetchall()
    connection.close()
    assert [(json.loads(output)["packet"]["payload"], kind) for output, kind in outputs] == [
        ({"a": "äöü"}, "portable_json")
    ]
    assert list((tmp_path / "run").glob("pipeline.sqlite-*")) == []
    assert not (tmp_path / "run/pipeline.log").exists()
    assert logging.getLogger("dbos").handlers == []


def test_a_database_in_wal_mode_is_taken_out_of_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    connection = sqlite3.connect(tmp_path / "run/pipeline.sqlite")
    assert connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    connection.close()
    run(stage("a", "append"))
    connection = sqlite3.connect(tmp_path / "run/pipeline.sqlite")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()


def test_a_damaged_or_lost_database_costs_nothing(run: Run, tmp_path: Path) -> None:
    stages = [stage("a", "append"), stage("b", "append")]
    result = run(*stages)
    database, record = tmp_path / "run/pipeline.sqlite", tmp_path / "run/record.txt"
    before = record.read_text()
    database.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match=r"damaged.*delete that file"):
        run(*stages)
    database.unlink()
    assert run(*stages) == result
    assert record.read_text() == before


def test_stages_cannot_disturb_standard_output(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(stage("a", "print_a_lot"))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["nor this", "progress", "this must not be on stdout"] or sorted(
        captured.err.splitlines()
    ) == ["nor this", "progress", "this must not be on stdout"]
    assert "a line for the log" in (tmp_path / "run/stages/a/attempt-1.log").read_text()


def test_a_program_that_uses_dbos_itself_is_not_disturbed(run: Run, tmp_path: Path) -> None:
    from dbos import DBOS, DBOSConfig, _dbos

    def theirs(x: int) -> int:
        return x

    try:
        DBOS.workflow(name="theirs")(theirs)
        assert run(stage("a", "append")).payload == {"a": 1}
        assert "theirs" in _dbos._get_or_create_dbos_registry().workflow_info_map
        DBOS(config=DBOSConfig(name="theirs", system_database_url=f"sqlite:///{tmp_path}/theirs.sqlite"))
        with pytest.raises(PipelineError, match="a process of its own"):
            run(stage("a", "append"), folder=tmp_path / "other")
        assert _dbos._dbos_global_instance is not None
    finally:
        DBOS.destroy(destroy_registry=True)
        logging.getLogger("dbos").handlers.clear()


def test_neither_torch_nor_dbos_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, open_autoglm.pipeline.runner; print([m for m in ('torch', 'dbos', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
