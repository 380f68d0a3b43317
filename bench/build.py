# SPDX-License-Identifier: Apache-2.0
"""How good is what a build makes in a given time? Builds on a data set and writes the figures to bench/results.

python bench/build.py examples/snips --budget 15m --seed 0
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import open_autoglm
from open_autoglm.search.leaderboard import Leaderboard
from open_autoglm.storage import write_json
from open_autoglm.targets import resolve_target

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Build once and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--budget", default="15m")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result; from the data by default")
    arguments = parser.parse_args()
    name = arguments.name or (arguments.data.name if arguments.data.is_dir() else arguments.data.stem)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        result = open_autoglm.build(
            arguments.data, out=Path(folder) / name, budget=arguments.budget, seed=arguments.seed
        )
        seconds = time.monotonic() - started
        board = Leaderboard.load(result.leaderboard)
        manifest = json.loads((result.bundle / "bundle.json").read_text(encoding="utf-8"))
    record = {
        "command": f"python bench/build.py {arguments.data} --budget {arguments.budget} --seed {arguments.seed}",
        "seconds": round(seconds, 1),
        "task": result.task,
        "metrics": result.metrics,
        "parameters": manifest["parameters"],
        "quantizations": manifest["quantizations"],
        "seconds_by_step": manifest["lineage"]["seconds"],
        "leaderboard": [asdict(row) for row in board.ranked()],
        "machine": {**resolve_target().to_dict(), "python": platform.python_version()},
        "versions": manifest["lineage"]["versions"],
    }
    path = RESULTS / f"build_{name}_{arguments.budget}_seed{arguments.seed}.json"
    write_json(path, record)
    print(json.dumps({"written": str(path), "metrics": result.metrics, "seconds": record["seconds"]}))


if __name__ == "__main__":
    main()
