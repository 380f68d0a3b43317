# SPDX-License-Identifier: Apache-2.0
"""Stages on a real Ray cluster of this machine: resources, cancel, time limits, and a node that is killed midway."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from programs_for_tests import is_alive
from stages_for_tests import MODULES

from open_autoglm.errors import PipelineError, SpecificationError
from open_autoglm.pipeline.catalog import default_catalog
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.journal_records import RunRecord
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.placement import Capacity
from open_autoglm.pipeline.plan import ItemKey
from open_autoglm.pipeline.run_requests import ask
from open_autoglm.pipeline.specification import PipelineSpecification, ResourceSpecification, StageSpecification
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.worker import Worker
from open_autoglm.pipeline.yaml_file import read_pipeline
from open_autoglm.pipeline.yaml_writing import write_pipeline

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

HERE = Path(__file__).parent
ON_RAY = ResourceSpecification(executor="ray")


def wait_for(fact: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 120
    while not fact():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of real processes, whose head runs nothing, joined by this one; it has no node yet that does."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'open-autoglm[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        made = start_cluster(Cluster)
        try:
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


def start_cluster(kind: type[Cluster]) -> Cluster:
    """Ray gives its own parts 30 seconds to start, which a machine that is very busy may not have for them."""
    import ray

    for is_last in (False, True):
        made = None
        try:
            made = kind(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
            ray.init(address=made.address, log_to_driver=False)
        except Exception as error:
            if made is not None:
                made.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if is_last:
                pytest.skip("Ray did not start in the 30 seconds that it has for that: this machine is too busy")
        else:
            return made
    raise AssertionError


@contextlib.contextmanager
def node_with(cluster: Cluster, **resources: float) -> Iterator[Any]:
    node = cluster.add_node(**resources)
    try:
        yield node
    finally:
        cluster.remove_node(node)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(f"sqlite:///{tmp_path}/pipelines.sqlite")
    yield journal
    journal.close()


def submit(journal: Journal, folder: Path, *stages: StageSpecification) -> str:
    content = PipelineSpecification("p", stages).to_dict()
    return journal.submit(content, Packet("s", {"a": 1}), folder=str(folder))[0]


@contextlib.contextmanager
def serving(journal: Journal, folder: Path) -> Iterator[None]:
    worker = Worker(journal, StageCatalog(MODULES), folder, capacity=Capacity(1.0, 1 << 20, 0))
    stop = threading.Event()
    thread = threading.Thread(target=worker.serve, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        worker.close()


@pytest.mark.timeout(280)
def test_resources_a_cancel_and_a_time_limit(
    cluster: Cluster, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker itself has neither the memory nor the GPU: the node has, and it has them once."""
    import ray

    from open_autoglm.pipeline import ray_pool

    monkeypatch.setattr(ray_pool, "_ROOM_SECONDS", 0.1)
    wanted = ResourceSpecification(cpu=1.0, memory=300_000_000, gpu=1, executor="ray")
    large = ResourceSpecification(gpu=2, executor="ray")
    never = str(tmp_path / "never")
    with node_with(cluster, num_cpus=2, num_gpus=1, memory=500_000_000), serving(journal, tmp_path):
        first = submit(
            journal, tmp_path, StageSpecification("wait", "wait_for_go", config={"file": never}, resources=wanted)
        )
        record = tmp_path / first / "record.txt"
        wait_for(lambda: record.exists() and record.read_text().endswith("\n"), "the first stage")
        second = submit(
            journal,
            tmp_path,
            StageSpecification("late", "wait_for_go", config={"file": never}, resources=wanted, timeout_seconds=0.5),
        )
        process = int(record.read_text().split()[3])
        wait_for(lambda: ray.available_resources().get("GPU", 0.0) == 0.0, "the GPU is taken")
        left, whole = ray.available_resources(), ray.cluster_resources()
        taken = {name: whole[name] - left.get(name, 0.0) for name in ("CPU", "GPU", "memory")}
        assert taken == pytest.approx({"CPU": 1.0, "GPU": 1.0, "memory": 300_000_000}, rel=0.01)
        wait_for(lambda: journal.get(second).state == "running", "the second run")
        assert is_alive(process)
        assert not (tmp_path / second / "record.txt").exists(), "there is one GPU, and the first run has it"
        ask(journal, first, "cancel")
        wait_for(lambda: journal.get(first).state == "cancelled", "the cancelled run")
        assert not is_alive(process)
        wait_for(lambda: journal.get(second).state == "failed", "the time limit")
        assert "it ran into its time limit of 0.5 s and was stopped" in str(journal.get(second).reason)
        late = tmp_path / second / "record.txt"  # which is there if it got as far as that in its time
        assert not (late.exists() and is_alive(int(late.read_text().split()[3])))
        huge = submit(journal, tmp_path, StageSpecification("huge", "append", resources=large))
        log = tmp_path / huge / "stages" / "huge" / "attempt-1.log"
        wait_for(log.exists, "a line that says what is missing")
        wait_for(lambda: "no node of the Ray cluster has 1 cpu, 0 GB and 2 gpu" in log.read_text(), "its words")
        ask(journal, huge, "cancel")
        wait_for(lambda: journal.get(huge).state == "cancelled", "what waited for a node is cancelled too")


@pytest.mark.timeout(280)
@pytest.mark.thorough
def test_a_lost_node_is_another_attempt(cluster: Cluster, journal: Journal, tmp_path: Path) -> None:
    go = tmp_path / "go"
    doomed = cluster.add_node(num_cpus=1)
    slow = submit(
        journal,
        tmp_path,
        StageSpecification("wait", "wait_for_go", config={"file": str(go)}, resources=ON_RAY, timeout_seconds=200),
        StageSpecification("after", "append"),
    )
    record = tmp_path / slow / "record.txt"
    with serving(journal, tmp_path):
        wait_for(lambda: record.exists() and "start wait 1" in record.read_text(), "the first attempt")
        first = int(record.read_text().split()[3])
        assert is_alive(first)
        doomed.kill_raylet(check_alive=False)
        wait_for(lambda: not is_alive(first), "the guard ends the stage of a node that died")
        with node_with(cluster, num_cpus=2):
            wait_for(lambda: "start wait 2" in record.read_text(), "the second attempt")
            go.touch()
            wait_for(lambda: journal.get(slow).state == "done", "the run")
            late = submit(
                journal, tmp_path, StageSpecification("late", "grandchildren", resources=ON_RAY, timeout_seconds=2)
            )
            wait_for(lambda: journal.get(late).state == "failed", "the time limit")
    items = journal.items(slow)
    assert (items[ItemKey("wait", 0)].attempt, items[ItemKey("wait", 0)].failures) == (2, 0)
    assert record.read_text().count("start wait") == 2
    assert "end wait 1" not in record.read_text()
    result = journal.get(slow).result
    assert result is not None
    assert result.payload == {"a": 1, "attempt": 2, "after": 1}
    assert "it ran into its time limit of 2 s and was stopped" in str(journal.get(late).reason)
    children = [int(pid) for pid in (tmp_path / late / "pids.txt").read_text().split()]
    assert children
    assert not any(is_alive(pid) for pid in children)


def test_the_workers_slots_are_not_for_what_runs_on_a_cluster(journal: Journal, tmp_path: Path) -> None:
    large = ResourceSpecification(cpu=64.0, memory=1 << 49, gpu=8, executor="ray")
    assert large.of_worker == ResourceSpecification(cpu=0.0)
    submit(journal, tmp_path, StageSpecification("big", "append", resources=large))
    assert journal.claim("me", 30.0, Capacity(1.0, 1 << 20, 0)) is not None


def test_the_executor_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    text = (
        "name: p\npipeline:\n"
        "- {stage: a, module: file_source, executor: ray, resources: {cpu: 2}}\n"
        "- {stage: b, module: file_source, resources: {executor: ray}}\n"
        "- {stage: c, module: file_source}\n"
    )
    path.write_text(text)
    found = read_pipeline(path, default_catalog()).specification
    assert [stage.resources.executor for stage in found.stages] == ["ray", "ray", "local"]
    assert "executor" not in found.to_dict()["stages"][2].get("resources", {})
    path.write_text(write_pipeline(found))
    assert read_pipeline(path, default_catalog()).specification == PipelineSpecification.from_dict(found.to_dict())
    for wrong, message in (
        ("executor: rey", "3:35: stage 'a'.executor: input should be 'local' or 'ray'"),
        ("executor: local, resources: {executor: ray}", "executor is local, and resources.executor is ray"),
    ):
        path.write_text(text.replace("executor: ray, resources: {cpu: 2}", wrong))
        with pytest.raises(SpecificationError) as caught:
            read_pipeline(path, default_catalog())
        assert message in str(caught.value)
    with pytest.raises(PipelineError, match="there is no 'rai'; did you mean 'ray'"):
        ResourceSpecification(executor="rai")


def run_to_its_end(journal: Journal, folder: Path, run: str) -> RunRecord:
    with contextlib.closing(Worker(journal, StageCatalog(MODULES), folder)) as worker:
        return worker.run(run)


def test_a_cluster_that_is_away_is_tried_again_and_then_said(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'open-autoglm[ray]'")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # whatever another test has left
    monkeypatch.setattr("open_autoglm.pipeline.conductor._LOSS_SECONDS", 0.01)
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        run = submit(journal, tmp_path, StageSpecification("a", "append", resources=ON_RAY))
        record = run_to_its_end(journal, tmp_path, run)
    assert record.state == "failed"
    assert "the Ray cluster cannot be reached: [Errno 111]" in str(record.reason)
    item = journal.items(run)[ItemKey("a", 0)]
    assert (item.attempt, item.failures) == (4, 1), "three losses, which are no failures, and then one that is"


def test_a_missing_ray_is_said_at_once(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "open_autoglm.pipeline.ray_pool", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    run = submit(journal, tmp_path, StageSpecification("a", "append", resources=ON_RAY))
    record = run_to_its_end(journal, tmp_path, run)
    assert record.state == "failed"
    assert "pip install 'open-autoglm[ray]'" in str(record.reason)
