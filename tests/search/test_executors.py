# SPDX-License-Identifier: Apache-2.0
"""Trials in processes of their own: side by side, killed and continued, given up, and ended with their parent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.memory_allocator import find_allocator
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.search.executors import InlineExecutor, ProcessExecutor
from open_autoglm.search.plan import RUNGS, plan_by_steps
from open_autoglm.search.trial import JUDGED, Judgement, Rung, TrialOrder, TrialRecord
from open_autoglm.search.tuner import Tuner
from open_autoglm.train.loss import validation_loss
from tests.search.trial_benches import OPENED_BY, Quiet, TinyBench, small_space

ROOT = Path(__file__).parents[2]


class Recorder:
    """Lets every trial go on."""

    def __init__(self) -> None:
        self.passed: list[Rung] = []
        self.records: list[TrialRecord] = []

    def decide(self, rung: Rung) -> bool:
        self.passed.append(rung)
        return True

    def note(self, trial: int, step: int, steps: int, seconds: float) -> None:
        assert 0 < step <= steps

    def finish(self, record: TrialRecord) -> None:
        self.records.append(record)


def order(number: int, folder: Path, steps: int = 18) -> TrialOrder:
    space = small_space()
    return TrialOrder.of(number, space.candidate(space.defaults), folder / f"{number}", steps)


def facts(record: TrialRecord) -> tuple[object, ...]:
    return record.state, record.steps, record.valid_loss, record.score, [loss for _, _, loss in record.curve]


class LossBench(TinyBench):
    """Notes the validation loss of what it is given to judge."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def judge(self, model: GlmForCausalLM, *, is_final: bool) -> Judgement:
        self.losses.append(validation_loss(model, self.valid))
        return super().judge(model, is_final=is_final)


def test_a_trial_is_judged_by_the_average_of_its_weights(tmp_path: Path) -> None:
    bench, recorder = LossBench(), Recorder()
    plain = order(0, tmp_path, steps=180)
    changes = {"learning_rate": 6e-2, "warmup_steps": 1, "ema_decay": 0.9, "precision": "float32"}
    fast = replace(plain, settings={**plain.settings, **changes})
    executor = InlineExecutor(bench)
    executor.submit(fast)
    executor.wait(recorder)
    rows = [json.loads(line) for line in (tmp_path / "0" / "curve.jsonl").read_text().splitlines()]
    rows = {row["step"]: row for row in rows if "average_valid_loss" in row}
    assert not any("last_valid_loss" in row for row in rows.values())  # its rate does not fall
    assert bench.losses == pytest.approx([rung.valid_loss for rung in recorder.passed], rel=1e-6)
    assert bench.losses == pytest.approx([rows[rung.steps]["average_valid_loss"] for rung in recorder.passed], rel=1e-6)


def test_a_trial_that_is_the_only_one_is_judged_at_its_end_alone(tmp_path: Path) -> None:
    bench, recorder = LossBench(), Recorder()
    executor = InlineExecutor(bench)
    executor.submit(replace(order(0, tmp_path), is_only=True))
    executor.wait(recorder)
    beside = Recorder()
    executor.submit(order(1, tmp_path))
    executor.wait(beside)
    assert len(bench.losses) == 1 + len(JUDGED)
    assert [rung.rung for rung in recorder.passed] == [RUNGS]
    assert [rung.rung for rung in beside.passed] == list(JUDGED)
    assert facts(recorder.records[0]) == facts(beside.records[0])


@pytest.fixture(autouse=True, scope="module")
def import_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def two_processes(marks: Path, import_tests: None) -> Iterator[ProcessExecutor]:
    """The first one that judges a second rung is killed by that."""
    with ProcessExecutor(OPENED_BY, {"die_at": {"judgement": 2}, "marks": str(marks)}, count=2) as executor:
        yield executor


def test_trials_have_the_allocator_that_was_found(two_processes: ProcessExecutor) -> None:
    library = find_allocator()
    if library is None:
        pytest.skip("neither jemalloc nor tcmalloc is here")
    name = Path(library).name.partition(".so")[0]
    assert len(two_processes.process_ids) == 2
    for process in two_processes.process_ids:
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        preloaded = [entry.decode() for entry in environment if entry.startswith(b"LD_PRELOAD=")]
        assert preloaded == [f"LD_PRELOAD={library}"]
        assert name in Path(f"/proc/{process}/maps").read_text()


def test_a_process_that_is_killed_takes_nothing_with_it(
    two_processes: ProcessExecutor, marks: Path, tmp_path: Path
) -> None:
    """Two at a time; the one that judges its second rung is killed, and its trial goes on in another process."""
    alone = Recorder()
    inline = InlineExecutor(TinyBench())
    inline.submit(order(0, tmp_path / "inline"))
    inline.wait(alone)
    heard = Recorder()
    assert two_processes.capacity == 2
    first = set(two_processes.process_ids)
    two_processes.submit(order(0, tmp_path / "process"))
    two_processes.submit(order(1, tmp_path / "process"))
    while len(heard.records) < 2:
        two_processes.wait(heard)
    assert set(two_processes.process_ids) != first
    assert two_processes.measure() == [1e9, 1e9]
    assert (marks / "died-2").exists()
    assert sorted(record.trial for record in heard.records) == [0, 1]
    rungs = [(rung.trial, rung.rung) for rung in heard.passed]
    assert len(rungs) == len(set(rungs)) == 6
    for record in heard.records:
        assert facts(record) == facts(alone.records[0])


def test_a_trial_that_kills_every_process_is_given_up(tmp_path: Path) -> None:
    context = {"die_at": {"always": 1}, "marks": str(tmp_path)}
    heard = Recorder()
    with ProcessExecutor(OPENED_BY, context, count=1) as executor:
        executor.submit(order(7, tmp_path))
        while not heard.records:
            executor.wait(heard)
    (record,) = heard.records
    assert record.trial == 7
    assert record.state == "failed"
    assert "3 times" in (record.failure or "")


def test_a_search_in_processes_finishes_each_trial_once(two_processes: ProcessExecutor, tmp_path: Path) -> None:
    watcher = Quiet()
    tuner = Tuner(
        tmp_path, small_space(), plan_by_steps(40, 5, parallel=2), two_processes, mean_length=8.0, watcher=watcher
    )
    tuner.run()
    assert sorted(watcher.finished_trials) == [0, 1, 2, 3, 4]
    assert len(tuner.entries()) == 5


def test_no_process_outlives_the_search(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from open_autoglm.search.executors import ProcessExecutor\n"
        f"executor = ProcessExecutor({OPENED_BY!r}, {{}}, count=1)\n"
        "print(*executor.process_ids, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(ROOT)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and b"Z" not in Path(f"/proc/{child}/stat").read_bytes().split()[2:3]:
        assert time.monotonic() < deadline, "the process for trials lives on"
        time.sleep(0.1)
    assert os.getpid() != child


def test_a_count_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        ProcessExecutor(OPENED_BY, {}, count=0)
