# SPDX-License-Identifier: Apache-2.0
"""Random pipelines through the real conductor, journal and placement, against a model: right, and none stuck."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.thoroughness import times

from open_autoglm.pipeline.attempt import StopSignal
from open_autoglm.pipeline.conductor import Conductor
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.placement import Capacity, Placement
from open_autoglm.pipeline.specification import (
    ForEachSpecification,
    PipelineSpecification,
    ResourceSpecification,
    RetrySpecification,
    StageSpecification,
)
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.warm_pool import Attempt, AttemptOutcome

CAPACITY = Capacity(3.0, 100, 2)
CONDITIONS = {5: "payload.seen is defined", 6: "false", 7: "payload.part is defined and payload.part > 0"}
RECORDS = [{"id": number} for number in range(5)]


@dataclass
class TrivialStages:
    """Runs attempts at once, and watches over order and slots. A stage says by its config how it behaves."""

    specification: PipelineSpecification
    lock: threading.Lock = field(default_factory=threading.Lock)
    clock: Iterator[int] = field(default_factory=itertools.count)
    starts: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, list[int]] = field(default_factory=dict)
    keys: dict[str, list[int]] = field(default_factory=dict)
    used: list[float] = field(default_factory=lambda: [0.0, 0, 0])
    overbooked: bool = False

    def run(self, attempt: Attempt, stop: StopSignal) -> AttemptOutcome:
        wanted = self.specification.stage(attempt.stage).resources
        amounts = (wanted.cpu, wanted.memory, wanted.gpu)
        with self.lock:
            self.starts.setdefault(attempt.stage, []).append(next(self.clock))
            self.keys.setdefault(attempt.idempotency_key, []).append(attempt.attempt)
            self.used = [have + more for have, more in zip(self.used, amounts, strict=True)]
            limits = (CAPACITY.cpu, CAPACITY.memory, CAPACITY.gpu)
            self.overbooked |= any(have > limit + 1e-6 for have, limit in zip(self.used, limits, strict=True))
        outcome = self._outcome(attempt)
        with self.lock:
            self.used = [have - more for have, more in zip(self.used, amounts, strict=True)]
            self.ends.setdefault(attempt.stage, []).append(next(self.clock))
        return outcome

    def _outcome(self, attempt: Attempt) -> AttemptOutcome:
        config = attempt.config
        if attempt.attempt <= config["fails"]:
            return AttemptOutcome(failure={"types": [], "message": "not yet", "permanent": False})
        if config["broken"]:
            return AttemptOutcome(failure={"types": ["DataError"], "message": "broken", "permanent": True})
        payloads = work(attempt.stage, dict(config), dict(attempt.packet["payload"]))
        return AttemptOutcome([Packet("s", payload).to_dict() for payload in payloads])


def work(stage: str, config: dict[str, Any], payload: dict[str, Any]) -> list[dict[str, Any]]:
    """What a stage makes of a payload."""
    seen = sorted({stage, *seen_in(payload)})
    records = [{**record, stage: 1} for record in payload.get("records", RECORDS)]
    return [{"seen": seen, "part": part, "records": records} for part in range(config["yields"])]


def seen_in(payload: Any) -> set[str]:
    if isinstance(payload, dict):
        own = set(payload.get("seen", ()))
        return own.union(*(seen_in(value) for key, value in payload.items() if key != "seen"))
    return set().union(*(seen_in(value) for value in payload)) if isinstance(payload, list) else set()


@st.composite
def pipelines(draw: st.DrawFn) -> PipelineSpecification:
    """Any acyclic graph of up to seven stages, written in any order, with what stages may have."""
    size = draw(st.integers(1, 7))
    names = [f"s{number}" for number in range(size)]
    stages = []
    broken = draw(st.sampled_from([None, None, None, *names]))
    for number, name in enumerate(names):
        # A dozen kinds of stages in one draw: hypothesis is quicker with few choices.
        kind = draw(st.integers(0, 11))
        before = names[:number]
        needs = draw(st.lists(st.sampled_from(before), unique=True, max_size=3)) if before else []
        fails = 1 if kind in (3, 7) else 0
        stages.append(
            StageSpecification(
                name,
                "trivial",
                tuple(needs),
                {
                    "yields": (0 if kind == 11 else 2) if kind in (4, 11) else 1,
                    "fails": fails,
                    "broken": name == broken,
                },
                None,
                RetrySpecification(1 + fails, 0.0),
                when=CONDITIONS.get(kind),
                for_each=ForEachSpecification("records", 2) if kind in (8, 9) and len(needs) < 2 else None,
                resources=ResourceSpecification((kind % 4) * 0.75, kind * 7, kind % 3),
            )
        )
    return PipelineSpecification("random", tuple(draw(st.permutations(stages))))


def expected(specification: PipelineSpecification) -> tuple[dict[str, list[dict[str, Any]]], set[str]]:
    """The model: what each stage gives, one after the other, and which stages can never be done."""
    needs = specification.needs
    outputs: dict[str, list[dict[str, Any]]] = {}
    failed: set[str] = set()
    for stage in specification.order:
        if failed & set(needs[stage.stage]):
            failed.add(stage.stage)
            continue
        inputs = joined([outputs[need] for need in needs[stage.stage]], needs[stage.stage])
        if not needs[stage.stage]:
            inputs = [{"records": RECORDS}]
        outputs[stage.stage] = []
        for payload in inputs:
            batches = [payload]
            if stage.for_each is not None and "records" not in payload:
                failed.add(stage.stage)
                continue
            if stage.for_each is not None:
                rows = payload["records"]
                batches = [{**payload, "records": rows[start : start + 2]} for start in range(0, len(rows), 2)]
            results: list[dict[str, Any]] = []
            for batch in batches:
                if stage.when is not None and not holds(stage.when, batch):
                    results.append(batch)
                elif stage.config["broken"]:
                    failed.add(stage.stage)
                else:
                    results += work(stage.stage, stage.config, batch)
            if stage.for_each is not None:
                merged = dict(payload)
                for result in results:
                    merged.update(result)
                results = [{**merged, "records": [record for result in results for record in result["records"]]}]
            outputs[stage.stage] += results
    return outputs, failed


def holds(condition: str, payload: dict[str, Any]) -> bool:
    """What the conditions in CONDITIONS mean."""
    if condition == CONDITIONS[5]:
        return "seen" in payload
    return condition == CONDITIONS[7] and payload.get("part", 0) > 0


def joined(outputs: list[list[dict[str, Any]]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    if len(names) == 1:
        return outputs[0]
    return [{name: one[0] if len(one) == 1 else one for name, one in zip(names, outputs, strict=True)}]


@pytest.fixture(scope="module")
def machinery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Journal, ThreadPoolExecutor, Path]]:
    shared_memory = Path("/dev/shm")  # the disk is not what is tested here
    folder = tmp_path_factory.mktemp("random")
    database = (shared_memory if shared_memory.is_dir() else folder) / f"{folder.name}-{id(folder)}.sqlite"
    journal = Journal(f"sqlite:///{database}")
    threads = ThreadPoolExecutor(4)
    yield journal, threads, folder
    threads.shutdown()
    journal.close()
    database.unlink()


@pytest.mark.timeout(1800)  # a minute for 2,000, on a machine that does nothing else; `make thorough` has so many
@settings(
    max_examples=times(200, 2000),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(specification=pipelines())
def test_random_pipelines_end_as_the_model_says(
    machinery: tuple[Journal, ThreadPoolExecutor, Path], specification: PipelineSpecification
) -> None:
    journal, threads, folder = machinery
    run_id, _ = journal.submit(specification.to_dict(), Packet("s", {"records": RECORDS}), folder=str(folder))
    claim = journal.claim("me", 60.0, CAPACITY, run_id)
    assert claim is not None
    stages = TrivialStages(specification)
    placement = Placement(CAPACITY)
    conductor = Conductor(
        journal, claim, StageCatalog({"trivial": "nowhere:nothing"}), stages, placement, threads=threads
    )
    state = conductor.run()  # a stuck one ends by the time limit of the tests
    outputs, failed = expected(specification)
    assert not stages.overbooked
    assert placement.is_idle
    for stage in specification.stages:
        for need in specification.needs[stage.stage]:
            assert max(stages.ends.get(need, [-1])) < min(stages.starts.get(stage.stage, [1 << 60]))
    assert all(attempts == list(range(1, len(attempts) + 1)) for attempts in stages.keys.values())
    run = journal.get(run_id)
    assert run.state == state
    if failed:
        assert state == "failed"
        assert "broken" in str(run.reason) or "payload.records must be a list of records" in str(run.reason)
        impossible = {one.stage for one in specification.stages if failed & set(specification.needs[one.stage])}
        assert not impossible & set(stages.starts)
        return
    assert (state, run.reason) == ("done", None)
    last = specification.last
    wanted = joined([outputs[name] for name in last], last)
    assert run.result is not None
    if len(last) == 1 and len(wanted) != 1:
        wanted = [{last[0]: outputs[last[0]]}]
    assert run.result.payload == wanted[0]
    assert {item.state for item in journal.items(run_id).values()} <= {"done", "waiting"}
