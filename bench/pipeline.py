# SPDX-License-Identifier: Apache-2.0
"""What a stage costs beside its work: chains and parallel branches of trivial stages, beside Luigi, in one run.

python bench/pipeline.py --luigi /tmp/venv-luigi/bin/python

Ours: a worker with two slots, warm processes and its journal in SQLite, each change of state on disk before the next
stage starts. `per attempt`: the runner of builds, on DBOS, which starts a process for each stage. Luigi: its local
scheduler with two workers, a file for each task.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from machine import command_line, describe_machine
from open_autoglm.pipeline import Packet, PipelineSpecification, StageSpecification, run_pipeline
from open_autoglm.pipeline.journal import Journal
from open_autoglm.pipeline.placement import Capacity
from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.worker import Worker
from open_autoglm.storage import FolderLock, write_json
from pipeline_stages import MODULES
from plots import plot_bars

SLOTS = 2
CHAIN = 20
RESULTS = Path(__file__).parent / "results"


def chain(length: int) -> PipelineSpecification:
    stages = [
        StageSpecification(f"s{number}", "trivial", (f"s{number - 1}",) if number else ()) for number in range(length)
    ]
    return PipelineSpecification("chain", tuple(stages))


def branches(count: int) -> PipelineSpecification:
    middle = [StageSpecification(f"s{number}", "trivial", ("root",)) for number in range(count)]
    join = StageSpecification("join", "trivial", tuple(stage.stage for stage in middle))
    return PipelineSpecification("branches", (StageSpecification("root", "trivial", ()), *middle, join))


def time_worker(worker: Worker, journal: Journal, folder: Path, specification: PipelineSpecification) -> float:
    """Seconds from before the run is submitted until its result is there."""
    started = time.perf_counter()
    run_id, _ = journal.submit(specification.to_dict(), Packet("bench"), folder=str(folder))
    run = worker.run(run_id)
    seconds = time.perf_counter() - started
    assert run.state == "done", run.reason
    return seconds


def time_build_runner(specification: PipelineSpecification) -> float:
    with tempfile.TemporaryDirectory() as folder, FolderLock(Path(folder)) as lock:
        started = time.perf_counter()
        run_pipeline(specification, Packet("bench"), folder=Path(folder), modules=MODULES, lock=lock)
        return time.perf_counter() - started


def time_luigi(python: str, kind: str, count: int) -> dict[str, Any]:
    script = Path(__file__).parent / "peers" / "time_luigi.py"
    ran = subprocess.run(
        [python, str(script), kind, str(count), str(SLOTS)], capture_output=True, text=True, check=True
    )
    record = json.loads(ran.stdout.splitlines()[-1])
    assert record["done"]
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--luigi", help="a Python that has luigi")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "pipeline.json")
    arguments = parser.parse_args()
    shapes: dict[str, tuple[PipelineSpecification, str, int]] = {
        f"chain of {CHAIN}": (chain(CHAIN), "chain", CHAIN),
        **{f"{count} branches": (branches(count), "branches", count) for count in (1, 10, 100)},
    }
    record: dict[str, Any] = {"command": command_line(), "machine": describe_machine(), "slots": SLOTS, "shapes": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = Journal(f"sqlite:///{folder}/pipelines.sqlite")
        worker = Worker(journal, StageCatalog(MODULES), folder, capacity=Capacity(float(SLOTS), 1 << 33, 0))
        time_worker(worker, journal, folder, branches(4))  # the processes start
        for shape, (specification, kind, count) in shapes.items():
            sides: dict[str, Callable[[], float]] = {
                "worker": lambda specification=specification: time_worker(worker, journal, folder, specification)
            }
            if count <= CHAIN:
                sides["per attempt"] = lambda specification=specification: time_build_runner(specification)
            if arguments.luigi:
                record["luigi"] = time_luigi(arguments.luigi, "chain", 1)["version"]
                sides["luigi"] = lambda kind=kind, count=count: time_luigi(arguments.luigi, kind, count)["seconds"]
            rounds: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(arguments.rounds):  # in turns, so that what else the machine does meets all
                for side, measure in sides.items():
                    rounds[side].append(measure())
            stages = len(specification.stages)
            record["shapes"][shape] = {
                "stages": stages,
                **{
                    side: {
                        "seconds": [round(value, 4) for value in seconds],
                        "milliseconds_per_stage": round(statistics.median(seconds) / stages * 1000, 2),
                        "stages_per_second": round(stages / statistics.median(seconds), 1),
                    }
                    for side, seconds in rounds.items()
                },
            }
            print(shape, json.dumps(record["shapes"][shape]), flush=True)
        worker.close()
        journal.close()
    write_json(arguments.out, record)
    names = [
        side for side in ("worker", "per attempt", "luigi") if any(side in one for one in record["shapes"].values())
    ]
    series = {
        side: [one.get(side, {}).get("milliseconds_per_stage", 0.0) for one in record["shapes"].values()]
        for side in names
    }
    plot_bars(
        list(record["shapes"]),
        series,
        title="Milliseconds for a stage that does nothing",
        unit="ms per stage",
        path=arguments.out.with_suffix(".png"),
    )


if __name__ == "__main__":
    main()
