# SPDX-License-Identifier: Apache-2.0
"""Does any request break the server? Requests that schemathesis makes of our own OpenAPI document, valid and not.

    python bench/fuzz_server.py --seeds 0-180 --folder DIR

Asks three tiny random models, one for each kind of task, over real sockets. A seed is a round of some hundred cases;
each leaves a file in DIR, so a run that was stopped goes on where it was, and several may share the seeds between them.
Writes bench/results/fuzz_server.json, over all that is in DIR: how many cases were answered with which status, and what
was wrong with an answer: a 5xx, a status or body that the document does not have, a request that should have been
refused. Ends with status 1 if anything was. A warning of NumPy counts as a fault, too.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.engine.tiny_bundle import CLASSIFICATION, DIALOGUE, EXTRACTION, make_bundle  # noqa: E402
from tests.serve.conftest import Running, serving  # noqa: E402
from tests.serve.fuzzing import Fuzzer, Tally  # noqa: E402

from open_autoglm.engine import LLM  # noqa: E402
from open_autoglm.storage import write_json  # noqa: E402

_TASKS = (DIALOGUE, CLASSIFICATION, EXTRACTION)
_LIMITS = {"max_body": 50_000, "max_choices": 8, "max_generated": 1500}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-180", help="the first and the last, such as 0-180 (100,000 cases)")
    parser.add_argument("--examples", type=int, default=60, help="of each operation in a round")
    parser.add_argument("--folder", type=Path, required=True, help="where the rounds leave their files")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "fuzz_server.json")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    warnings.simplefilter("error", RuntimeWarning)
    options.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        servers: list[Running] = []
        for seed in range(int(first), int(last or first) + 1):
            path = options.folder / f"{seed:06d}.json"
            if path.exists():
                continue
            servers = servers or [stack.enter_context(_server(place)) for place in range(len(_TASKS))]
            write_json(path, _round(servers[seed % len(servers)], seed, options.examples))
    record = _together(options.folder)
    write_json(options.output, record)
    print(json.dumps(record, indent=1))
    raise SystemExit(1 if record["faults"] else 0)


@contextlib.contextmanager
def _server(place: int) -> Iterator[Running]:
    task = _TASKS[place]
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder), task, name=task.kind.value, num_hidden_layers=1)
        with LLM(bundle, threads=1) as llm, serving(llm, **_LIMITS) as running:
            yield running


def _round(server: Running, seed: int, examples: int) -> dict[str, Any]:
    tally, faults, began = Tally(), list[str](), time.process_time()
    with Fuzzer(server.url, tally) as fuzzer:
        for number, kind in enumerate(fuzzer.kinds):
            try:
                fuzzer.ask(kind, examples, seed=1000 * seed + number)
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - told with the results; other operations go on
                faults.append("".join(traceback.format_exception(error))[-6000:])
    server.wait_until_idle()
    record = {
        "seed": seed,
        "model": server.llm.name,
        "cases": tally.cases,
        "processor_seconds": round(time.process_time() - began, 2),
        "answers": dict(sorted(tally.statuses.items())),
        "faults": faults,
    }
    print(f"seed {seed}: {tally.cases} cases, {record['processor_seconds']} s, {len(faults)} faults", flush=True)
    return record


def _together(folder: Path) -> dict[str, Any]:
    rounds = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    answers: Counter[str] = Counter()
    for item in rounds:
        answers.update(item["answers"])
    cases = answers.total()
    seconds = sum(item["processor_seconds"] for item in rounds)
    return {
        "cases": cases,
        "rounds": len(rounds),
        "processor_seconds": round(seconds, 1),
        "cases_per_processor_second": round(cases / seconds, 1) if seconds else None,
        "load_average": round(os.getloadavg()[0], 2),
        "faults": [{"seed": item["seed"], "what": fault} for item in rounds for fault in item["faults"]],
        "answers": dict(sorted(answers.items())),
    }


if __name__ == "__main__":
    main()
