# SPDX-License-Identifier: Apache-2.0
"""How good is what a build makes in a given time? Builds on a data set, once for each seed, and sums up all results.

python bench/build.py examples/snips --budget 15m --seeds 0 1 2
python bench/build.py --summary
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

import open_autoglm
from open_autoglm.data import PreparedData
from open_autoglm.search.baselines.classifiers import TunedClassifier
from open_autoglm.search.leaderboard import Leaderboard
from open_autoglm.storage import write_json
from open_autoglm.targets import resolve_target
from open_autoglm.task import TaskKind
from plots import plot_bars

RESULTS = Path(__file__).parent / "results"
AIMS = {
    "snips": {"test_exact_match": 0.87, "test_intent_accuracy": 0.985, "test_slot_f1": 0.94},
    "banking77": {"test_accuracy": 0.912},
    "chnsenticorp": {"test_accuracy": 0.929},
}
"""What we want of fifteen minutes on two cores."""


def main() -> None:
    """Build, write one JSON file for each build, and the summary of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--budget", default="15m")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--name", help="of the result; from the data by default")
    parser.add_argument("--summary", action="store_true", help="build nothing, sum up the results that are there")
    arguments = parser.parse_args()
    if (arguments.data is None) != arguments.summary:
        parser.error("give a data set, or --summary")
    if arguments.data is not None:
        name = arguments.name or (arguments.data.name if arguments.data.is_dir() else arguments.data.stem)
        for seed in arguments.seeds:
            build_once(arguments.data, name, arguments.budget, seed)
    summary = sum_up()
    write_json(RESULTS / "build.json", summary)
    for row in summary["data_sets"]:
        print(json.dumps(row))
    draw(summary)


def build_once(data: Path, name: str, budget: str, seed: int) -> None:
    """One build in a folder of its own, which is removed; what it found is kept."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        result = open_autoglm.build(data, out=Path(folder) / name, budget=budget, seed=seed)
        seconds = time.monotonic() - started
        board = Leaderboard.load(result.leaderboard)
        manifest = json.loads((result.bundle / "bundle.json").read_text(encoding="utf-8"))
        baseline = score_linear_model(PreparedData.load(Path(folder) / name / "data"))
    record = {
        "command": f"python bench/build.py {data} --budget {budget} --seeds {seed}",
        "load_average_before": round(load, 2),
        "name": name,
        "budget": budget,
        "seed": seed,
        "seconds": round(seconds, 1),
        "task": result.task,
        "metrics": result.metrics,
        "parameters": manifest["parameters"],
        "quantizations": manifest["quantizations"],
        "seconds_by_step": manifest["lineage"]["seconds"],
        "baseline_on_test": baseline,
        "leaderboard": [asdict(row) for row in board.ranked()],
        "machine": {**resolve_target().to_dict(), "python": platform.python_version()},
        "versions": manifest["lineage"]["versions"],
    }
    path = RESULTS / f"build_{name}_{budget}_seed{seed}.json"
    write_json(path, record)
    print(json.dumps({"written": str(path), "metrics": result.metrics, "seconds": record["seconds"]}))


def score_linear_model(data: PreparedData) -> dict[str, float] | None:
    """Accuracy on test of TF-IDF and a linear SVM that learns from the rows that the model learnt from.

    Published figures may not compare: a data set whose test rows stand in its training file loses these rows here.
    None for what is no classification.
    """
    if data.task.kind is not TaskKind.CLASSIFICATION or not data.test:
        return None
    texts, labels, queries, answers = (
        [value(example) for example in examples]
        for examples in (data.train, data.valid)
        for value in (attrgetter("input_text"), attrgetter("answer"))
    )
    told = TunedClassifier(texts, labels, queries, answers).predict([example.input_text for example in data.test])
    right = [a == example.answer for a, example in zip(told, data.test, strict=True)]
    return {"TF-IDF + linear SVM": round(statistics.mean(right), 4)}


def medians(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of what stands under the same name in several rows, not all of which need have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def sum_up() -> dict[str, Any]:
    """Each metric on test over the seeds: median, least, most, its aim; the baselines' medians on valid and on test."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("build_*_seed*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        runs.setdefault((record["name"], record["budget"]), []).append(record)
    rows: list[dict[str, Any]] = []
    for (name, budget), records in sorted(runs.items()):
        aims = AIMS.get(name, {}) if budget == "15m" else {}
        metrics: dict[str, Any] = {}
        for key in records[0]["metrics"]:
            values = [record["metrics"][key] for record in records if key in record["metrics"]]
            if key.startswith("test_"):
                metrics[key] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for key, aim in aims.items():
            if key in metrics:
                metrics[key]["aim"] = aim
        on_valid = medians(
            {row["name"]: row["score"] or 0.0 for row in record["leaderboard"] if row["kind"] == "baseline"}
            for record in records
        )
        best = max(on_valid, key=lambda baseline: on_valid[baseline], default=None)
        rows.append(
            {
                "name": name,
                "budget": budget,
                "seeds": [record["seed"] for record in records],
                "seconds": [record["seconds"] for record in records],
                "load_average_before": [record["load_average_before"] for record in records],
                "metrics": metrics,
                "best_baseline": None if best is None else {"name": best, "valid": on_valid[best]},
                "baseline_on_test": medians(record.get("baseline_on_test") or {} for record in records) or None,
            }
        )
    return {"command": "python bench/build.py --summary", "data_sets": rows}


def draw(summary: dict[str, Any]) -> None:
    """What was reached beside what we want, one group of bars for each metric that has an aim."""
    groups, reached, wanted = [], [], []
    for row in summary["data_sets"]:
        for key, values in row["metrics"].items():
            if "aim" in values:
                groups.append(f"{row['name']}\n{key.removeprefix('test_')}")
                reached.append(100 * values["median"])
                wanted.append(100 * values["aim"])
    if groups:
        title = "What a build of 15 minutes reaches on test, median of its seeds"
        series = {"reached": reached, "aim": wanted}
        plot_bars(groups, series, title=title, unit="%", path=RESULTS / "build.png")


if __name__ == "__main__":
    main()
