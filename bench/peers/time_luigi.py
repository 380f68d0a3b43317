# SPDX-License-Identifier: Apache-2.0
"""Seconds that Luigi takes for a pipeline of trivial tasks: BRANCHES WORKERS, or `chain` LENGTH WORKERS.

python bench/peers/time_luigi.py branches 10 2    (in an environment with luigi)

A task reads what it needs and writes a small JSON file, by which Luigi knows that it is done. Prints one JSON object.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import luigi


class Step(luigi.Task):
    folder = luigi.Parameter()
    name = luigi.Parameter()
    below = luigi.ListParameter(default=[])

    def requires(self):
        return [Step(folder=self.folder, name=name, below=below) for name, below in self.below]

    def output(self):
        return luigi.LocalTarget(str(Path(self.folder) / f"{self.name}.json"))

    def run(self):
        payload = {}
        for target in self.input():
            with target.open() as file:
                payload.update(json.load(file))
        payload[self.name] = 1
        with self.output().open("w") as file:
            json.dump(payload, file)


def main() -> None:
    kind, count, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        root = ("root", [])
        if kind == "chain":
            last = root
            for number in range(count - 1):
                last = (f"s{number}", [last])
        else:
            last = ("join", [(f"s{number}", [root]) for number in range(count)])
        started = time.perf_counter()
        done = luigi.build(
            [Step(folder=folder, name=last[0], below=last[1])], local_scheduler=True, workers=workers, log_level="ERROR"
        )
        seconds = time.perf_counter() - started
    print(json.dumps({"done": done, "seconds": seconds, "version": luigi.__version__}))


if __name__ == "__main__":
    main()
