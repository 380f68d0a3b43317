# SPDX-License-Identifier: Apache-2.0
"""Runs from the journal, in this process: order, fan-out, conditions, retries, limits, secrets, slots, control."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs_for_tests import is_alive, wait_until
from stages_for_tests import MODULES

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline import read_events
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_records import RunRecord
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.placement import Capacity
from open_autoglm.pipeline.plan import ItemKey
from open_autoglm.pipeline.run_requests import ask, retry
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.worker import Worker
from open_autoglm.pipeline.yaml_file import read_pipeline

CATALOG = StageCatalog(MODULES)
HEAD = "name: p\npipeline:\n"


class Bench:
    """A journal and a worker in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = Journal(f"sqlite:///{folder}/pipelines.sqlite")
        self.messages: list[str] = []
        self.worker = Worker(
            self.journal, CATALOG, folder, capacity=Capacity(4.0, 1 << 33, 1), on_message=self.messages.append
        )

    def submit(self, text: str, payload: dict[str, Any] | None = None, **options: Any) -> str:
        path = self.folder / "p.yaml"
        path.write_text(text if text.startswith("name:") else HEAD + text)
        content = read_pipeline(path, CATALOG).to_dict()
        packet = None if payload is None else Packet("session", payload)
        return self.journal.submit(content, packet, folder=str(self.folder), **options)[0]

    def run(self, text: str, payload: dict[str, Any] | None = None) -> RunRecord:
        return self.worker.run(self.submit(text, payload))

    def states(self, run_id: str, stage: str | None, number: int | None = 0) -> list[str]:
        number = None if stage is None else number
        return [
            one["state"] for one in self.journal.transitions(run_id) if (one["stage"], one["number"]) == (stage, number)
        ]

    def started(self, run_id: str) -> list[str]:
        """The stages in the order in which they started."""
        path = self.folder / run_id / "record.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith("start")]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.worker.close()
    bench.journal.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.worker.close()
    bench.journal.close()


def test_a_chain_passes_packets_on_and_records_each_state_with_its_time(shared: Bench) -> None:
    before = time.time()
    run = shared.run(
        "- {stage: a, module: append, config: {value: 1}}\n- {stage: b, module: append, config: {value: 2}}\n", {"x": 0}
    )
    assert (run.state, run.control, run.owner) == ("done", "", None)
    assert run.result is not None
    assert run.result.payload == {"x": 0, "a": 1, "b": 2}
    assert run.result.metadata["trace_id"] == run.trace_id
    assert run.result.metadata["provenance"] == [{"stage": "a", "attempt": 1}, {"stage": "b", "attempt": 1}]
    assert shared.states(run.run_id, "b") == ["waiting", "running", "done"]
    assert shared.states(run.run_id, None) == ["waiting", "running", "done"]
    times = [one["time"] for one in shared.journal.transitions(run.run_id)]
    assert times == sorted(times)
    assert before - 1 <= times[0] <= times[-1] <= time.time() + 1
    assert shared.worker.run(run.run_id) == run


def test_a_diamond_runs_side_by_side_and_joins_by_name(shared: Bench) -> None:
    run = shared.run(
        "- {stage: a, module: append}\n"
        "- {stage: b, module: wait_for_file, needs: [a], config: {file: c.here}, timeout: 20s}\n"
        "- {stage: c, module: wait_for_file, needs: [a], config: {file: b.here}, timeout: 20s}\n"
        "- {stage: d, module: append, needs: [b, c]}\n"
    )
    assert run.result is not None
    assert run.result.payload == {"b": {"stage": "b"}, "c": {"stage": "c"}, "d": 1}


def test_a_stage_that_yields_is_followed_once_for_each(shared: Bench) -> None:
    run = shared.run(
        "- {stage: words, module: split_text}\n"
        "- {stage: loud, module: shout, needs: [words]}\n"
        "- {stage: all, module: append, needs: [loud, words]}\n",
        {"text": "one two three"},
    )
    assert run.result is not None
    assert [one["text"] for one in run.result.payload["loud"]] == ["ONE!", "TWO!", "THREE!"]
    assert [one["text"] for one in run.result.payload["words"]] == ["one", "two", "three"]
    items = shared.journal.items(run.run_id)
    assert [items[ItemKey("loud", number)].state for number in range(3)] == ["done"] * 3
    assert shared.states(run.run_id, "loud", 2) == ["waiting", "running", "done"]


def test_for_each_runs_in_batches_and_puts_the_records_together_in_order(shared: Bench) -> None:
    records = [{"id": number} for number in range(25)]
    run = shared.run(
        "- {stage: a, module: append}\n"
        "- {stage: b, module: mark_records, needs: [a], for_each: {batch: 10}, resources: {cpu: 0.5}}\n"
        "- {stage: c, module: append, needs: [b]}\n",
        {"records": records, "kept": 1},
    )
    assert run.result is not None
    result = run.result.payload
    assert [record["id"] for record in result["records"]] == list(range(25))
    assert [record["of"] for record in result["records"]] == [10] * 20 + [5] * 5
    keys = [record["key"] for record in result["records"]]
    assert len(set(keys)) == 3
    assert keys[0] == f"{run.run_id}/b/0"
    assert (result["kept"], result["c"]) == (1, 1)
    empty = shared.run("- {stage: b, module: mark_records, for_each: records}\n", {"records": []})
    assert (empty.state, empty.result and empty.result.payload) == ("done", {"records": []})


def test_when_a_condition_does_not_hold_the_packet_passes_by(shared: Bench) -> None:
    text = (
        "- {stage: a, module: append}\n"
        "- {stage: b, module: append, needs: [a], when: payload.score < 0.5}\n"
        "- {stage: c, module: append, needs: [b]}\n"
    )
    low, high = shared.run(text, {"score": 0.1}), shared.run(text, {"score": 0.9})
    assert low.result is not None
    assert high.result is not None
    assert low.result.payload == {"score": 0.1, "a": 1, "b": 1, "c": 1}
    assert high.result.payload == {"score": 0.9, "a": 1, "c": 1}
    assert shared.states(high.run_id, "b") == ["waiting", "done"]
    missing = shared.run(text, {})
    assert missing.state == "failed"
    assert "stage 'b': the condition" in str(missing.reason)
    assert "is defined" in str(missing.reason)


def test_fails_twice_then_works_with_the_same_key(shared: Bench) -> None:
    run = shared.run(
        "- {stage: a, module: fail_until, config: {attempt: 3}, retry: {attempts: 3, wait: 50ms, jitter: false}}\n"
    )
    assert run.result is not None
    assert run.result.payload == {"a": 3}
    assert shared.states(run.run_id, "a") == [
        "waiting", "running", "retried", "running", "retried", "running", "done"
    ]  # fmt: skip
    retried = [one for one in shared.journal.transitions(run.run_id) if one["state"] == "retried"]
    assert retried[1]["reason"] == "ConnectionError: nobody answers (attempt 2)"
    again = [one for one in shared.journal.transitions(run.run_id) if one["state"] == "running" and one["stage"]]
    assert again[1]["time"] - retried[0]["time"] >= 0.049
    assert again[2]["time"] - retried[1]["time"] >= 0.099
    assert "Traceback" in (shared.folder / run.run_id / "stages/a/attempt-2.log").read_text()


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        ("boom", "{}", "ValueError: the ceiling fell down (details: "),
        ("own_error", "{kind: ours}", "the loss is not a number at step 12"),
        ("kill_itself", "{signal: SIGKILL}", "signal 9"),
        ("kill_itself", "{signal: SIGSEGV}", "SIGSEGV"),
        ("exit_quietly", "{}", "exit code 3"),
        ("not_a_packet", "{}", "returned a dict"),
        ("change_session", "{}", "session_id"),
    ],
)
def test_a_stage_that_breaks_fails_its_run_and_no_other(
    shared: Bench, module: str, settings: str, message: str
) -> None:
    run = shared.run(f"- {{stage: a, module: {module}, config: {settings}}}\n- {{stage: b, module: append}}\n")
    assert run.state == "failed"
    assert message in str(run.reason)
    assert shared.states(run.run_id, "a")[-1] == "failed"
    assert shared.states(run.run_id, "b") == ["waiting"]
    assert shared.run("- {stage: a, module: append}\n").state == "done"


def test_a_time_limit_ends_the_whole_tree(own: Bench) -> None:
    run = own.run("- {stage: a, module: grandchildren, timeout: 2s}\n")
    assert run.state == "failed"
    assert "time limit of 2 s" in str(run.reason)
    pids = [int(pid) for pid in (own.folder / run.run_id / "pids.txt").read_text().split()]
    assert len(pids) == 3
    wait_until(lambda: not [pid for pid in pids if is_alive(pid)], 3.0)


def test_what_a_stage_leaves_behind_goes_with_its_process(shared: Bench) -> None:
    run = shared.run("- {stage: a, module: leave_child}\n")
    assert run.result is not None
    wait_until(lambda: not is_alive(run.result.payload["child"]), 3.0)  # type: ignore[union-attr]
    assert not is_alive(run.result.payload["pid"])


def test_processes_stay_warm_and_heavy_stages_have_their_own(shared: Bench) -> None:
    text = "- {stage: a, module: shout}\n- {stage: b, module: alone}\n- {stage: c, module: shout}\n"
    first, second = (shared.run(text, {"text": "x"}) for _ in range(2))
    assert first.result is not None
    assert second.result is not None
    alone = [run.result.payload["alone_pid"] for run in (first, second) if run.result]
    assert alone[0] != alone[1]
    assert not {first.result.payload["pid"], second.result.payload["pid"]} & set(alone)
    wait_until(lambda: not any(is_alive(pid) for pid in alone), 3.0)
    pids = {shared.run("- {stage: a, module: shout}\n", {"text": "x"}).result.payload["pid"] for _ in range(3)}  # type: ignore[union-attr]
    assert len(pids) == 1


def test_an_input_that_does_not_fit_stops_there_with_the_field_named(shared: Bench) -> None:
    run = shared.run(
        "- {stage: a, module: append}\n- {stage: b, module: shout}\n", {"records": [{"score": "high"}], "text": ""}
    )
    assert run.state == "failed"
    assert "what stage 'b' gets from 'a' does not fit: payload.records[0].score: 'high' is not of type" in str(
        run.reason
    )
    run = shared.run("- {stage: b, module: shout}\n", {"x": 1})
    assert "does not fit: payload: 'text' is a required property" in str(run.reason)


def test_cursors_go_on_from_runs_that_are_done_and_only_from_those(own: Bench) -> None:
    good = "name: counting\npipeline:\n- {stage: a, module: count_up}\n"
    bad = good + "- {stage: b, module: boom}\n"
    numbers = [own.run(text).state for text in (good, bad, good)]
    assert numbers == ["done", "failed", "done"]
    outputs = [own.journal.items(run.run_id)[ItemKey("a", 0)].output for run in reversed(own.journal.list())]
    assert [output[0]["payload"]["number"] for output in outputs if output] == [1, 2, 2]
    assert own.journal.cursors("counting") == {"a": 2}


def test_a_secret_is_in_no_record_event_log_or_error(own: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPEN_AUTOGLM_SECRET_TOKEN", "s3cr3t-value")
    text = "- {{stage: a, module: leak_secret, config: {{token: '${{secrets:TOKEN}}', fail: {}}}}}\n"
    done, failed = own.run(text.format("false")), own.run(text.format("true"))
    assert (done.state, failed.state) == ("done", "failed")
    assert done.result is not None
    assert done.result.payload == {"seen": "***", "config": "***", "***": 1}
    assert "ValueError: wrong secret *** and ***" in str(failed.reason)
    assert read_events(own.folder / done.run_id)[0]["note"] == "the secret is ***"
    assert "the secret is ***" in (own.folder / done.run_id / "stages/a/attempt-1.log").read_text()
    for path in own.folder.rglob("*"):
        if path.is_file():
            assert b"s3cr3t" not in path.read_bytes(), path


def test_an_urgent_run_overtakes_what_waits(own: Bench) -> None:
    wide = "".join(
        f"- {{stage: s{n}, module: append, needs: [], config: {{seconds: 0.15}}, resources: {{cpu: 4}}}}\n"
        for n in range(6)
    )
    slow = own.submit(f"name: slow\npipeline:\n{wide}")
    urgent = own.submit(
        "name: urgent\npriority: urgent\npipeline:\n- {stage: u, module: append, resources: {cpu: 4}}\n"
    )
    thread = threading.Thread(target=own.worker.run, args=(slow,))
    thread.start()
    wait_until(lambda: len(own.started(slow)) >= 2)
    assert own.worker.run(urgent).state == "done"
    thread.join()
    ended = {one.run_id: one.updated for one in own.journal.list()}
    assert ended[urgent] < ended[slow]
    after = [one for one in own.journal.transitions(slow) if one["state"] == "running" and one["stage"]]
    assert sum(one["time"] > ended[urgent] for one in after) >= 2


def test_slots_are_never_overbooked_and_what_is_too_large_is_said(own: Bench) -> None:
    text = "".join(
        f"- {{stage: s{n}, module: append, needs: [], config: {{seconds: 0.05}}, resources: {{gpu: 1, cpu: 0}}}}\n"
        for n in range(4)
    )
    run = own.run(text)
    assert run.state == "done"
    lines = (own.folder / run.run_id / "record.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["start", "end"] * 4
    with pytest.raises(PipelineError, match=r"stage 'a' wants 1 cpu, 9000 GB and 0 gpu; here are 4 cpu"):
        own.run("- {stage: a, module: append, resources: {memory: 9TB}}\n".replace("9TB", "9000GB"))


def test_cancel_stops_what_runs(own: Bench) -> None:
    run_id = own.submit("- {stage: a, module: append, config: {seconds: 60}}\n- {stage: b, module: append}\n")
    thread = threading.Thread(target=own.worker.run, args=(run_id,))
    thread.start()
    wait_until(lambda: own.started(run_id))
    ask(own.journal, run_id[:8], "cancel")
    thread.join(120)
    assert own.journal.get(run_id).state == "cancelled"
    assert own.states(run_id, "a")[-1] == own.states(run_id, "b")[-1] == "cancelled"
    with pytest.raises(PipelineError, match="is cancelled; there is nothing to resume"):
        ask(own.journal, run_id, "")
    waiting = own.submit("- {stage: a, module: append}\n")
    assert ask(own.journal, waiting, "cancel").state == "cancelled"
    assert own.worker.run(waiting).state == "cancelled"


def test_a_stage_that_looks_can_end_by_itself(own: Bench) -> None:
    run = own.run("- {stage: a, module: cooperative, timeout: 3s}\n")
    assert run.state == "done"
    assert "goodbye a 1" in (own.folder / run.run_id / "record.txt").read_text()


def test_pause_finishes_what_runs_and_resume_goes_on(own: Bench) -> None:
    run_id = own.submit("- {stage: a, module: append, config: {seconds: 1}}\n- {stage: b, module: append}\n")
    thread = threading.Thread(target=own.worker.run, args=(run_id,))
    thread.start()
    wait_until(lambda: own.started(run_id))
    ask(own.journal, run_id, "pause")
    thread.join(120)
    paused = own.journal.get(run_id)
    assert (paused.state, paused.control, paused.owner, paused.reason) == ("waiting", "pause", None, "paused")
    assert own.states(run_id, "a")[-1] == "done"
    assert own.worker.run(run_id).state == "waiting"
    ask(own.journal, run_id, "")
    assert own.worker.run(run_id).state == "done"
    assert own.started(run_id) == ["a", "b"]


def test_retry_does_only_what_failed_and_from_a_stage_all_that_follows(own: Bench, tmp_path: Path) -> None:
    text = (
        "- {stage: a, module: append}\n"
        f"- {{stage: b, module: fail_until, config: {{file: {tmp_path}/now}}}}\n"
        "- {stage: c, module: show_context}\n"
    )
    run = own.run(text)
    assert run.state == "failed"
    (tmp_path / "now").touch()
    again = own.worker.run(retry(own.journal, run.run_id).run_id)
    assert again.state == "done"
    assert own.started(run.run_id) == ["a", "b", "b"]
    assert again.result is not None
    assert again.result.payload["key"] == f"{run.run_id}/c/0"
    with pytest.raises(PipelineError, match="is done; say with --from STAGE"):
        retry(own.journal, run.run_id)
    with pytest.raises(PipelineError, match="no stage 'x'"):
        retry(own.journal, run.run_id, "x")
    once_more = own.worker.run(retry(own.journal, run.run_id, "c").run_id)
    assert own.started(run.run_id) == ["a", "b", "b"]
    assert once_more.result is not None
    assert once_more.result.payload["key"] == f"{run.run_id}/c/0#1"  # done anew: a key of its own


def test_concurrency_holds_back_and_others_go_on(own: Bench) -> None:
    text = "name: {}\nconcurrency: {}\npipeline:\n- {{stage: a, module: append, config: {{seconds: 0.3}}}}\n"
    ones = [own.submit(text.format("one", 1)) for _ in range(2)]
    twos = [own.submit(text.format("two", 2)) for _ in range(2)]
    own.worker.serve(threading.Event(), until_idle=True)
    assert {run.state for run in own.journal.list()} == {"done"}

    def span(run_id: str) -> tuple[float, float]:
        times = [one["time"] for one in own.journal.transitions(run_id) if one["stage"] and one["state"] != "waiting"]
        return times[0], times[-1]

    first, second = sorted(span(run_id) for run_id in ones)
    assert first[1] <= second[0]
    (start, end), (other_start, other_end) = (span(run_id) for run_id in twos)
    assert start < other_end
    assert other_start < end


def test_the_same_key_starts_one_run(own: Bench) -> None:
    text = "- {stage: a, module: append}\n"
    assert own.submit(text, key="k") == own.submit(text, key="k")
    assert own.submit(text, key="other") != own.submit(text, key="k")
    assert len(own.journal.list()) == 2


def test_a_run_is_found_by_the_beginning_of_its_id(own: Bench) -> None:
    run_id = own.submit("- {stage: a, module: append}\n", run_id="abc123")
    own.submit("- {stage: a, module: append}\n", run_id="abd456")
    assert own.journal.get("abc").run_id == run_id
    with pytest.raises(PipelineError, match="several runs begin with 'ab'"):
        own.journal.get("ab")
    with pytest.raises(PipelineError, match=r"no run 'abc124'; did you mean 'abc123'\?"):
        own.journal.get("abc124")


def test_logging_is_left_alone_and_nothing_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = [thread.name for thread in threading.enumerate()]
    bench = Bench(tmp_path)
    run = bench.run("- {stage: a, module: print_a_lot}\n")
    bench.worker.close()
    bench.journal.close()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "a line for the log" in (tmp_path / run.run_id / "stages/a/attempt-1.log").read_text()
    assert logging.getLogger("open_autoglm.stage.a").handlers == []
    wait_until(lambda: sorted(thread.name for thread in threading.enumerate()) == sorted(before), 3.0)
    assert not list((tmp_path / ".workers").iterdir())
    assert bench.messages == [f"run {run.run_id}: done"]
