# SPDX-License-Identifier: Apache-2.0
"""How much faster does a build train with the memory allocator that it finds than with the system's?

python bench/allocators.py --json

Each round starts a process with either, one after the other in turns, which opens the data as a build's processes do
and trains the model that a build of Snips tries first, as it does: by Muon, in batches of 2,048 tokens, with a worker
for each processor. All tokens count, for none is padding. `--also PATH` measures further libraries.
Writes bench/results/allocators.json, and a plot where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import command_line, describe_machine
from open_autoglm.memory_allocator import VARIABLE, allocator_environment, find_allocator
from open_autoglm.storage import write_json
from open_autoglm.targets import usable_cores
from plots import plot_bars
from spread import spread

RESULTS = Path(__file__).parent / "results"
_WARM_UP_STEPS = 12
_SYSTEM = "system"
_PAYLOAD = "payload.json"


def main() -> None:
    """Measure, print a line for each allocator or the JSON, and write the results."""
    arguments = parse(sys.argv[1:])
    if arguments.alone:
        print(json.dumps(train(arguments)))
        return
    found = find_allocator(os.environ.get(VARIABLE, ""))
    if found is None and not arguments.also:
        raise SystemExit("neither jemalloc nor tcmalloc is here: there is nothing to compare")
    libraries = [_SYSTEM, *([found] if found else []), *arguments.also]
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        read(arguments.data, Path(folder))
        for number in range(arguments.rounds):
            order = libraries[:: 1 if number % 2 == 0 else -1]
            rounds.append({library: measured_alone(library, Path(folder), arguments.steps) for library in order})
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
    record = summarise(libraries, rounds)
    path = arguments.out or RESULTS / "allocators.json"
    write_json(path, record)
    plot_bars(
        [str(number + 1) for number in range(len(rounds))],
        {Path(library).name: [row[library]["tokens_per_s"] for row in rounds] for library in libraries},
        title="training the first trial of Snips, by round",
        unit="tokens/s",
        path=path.with_suffix(".png"),
    )
    print(json.dumps(record) if arguments.json else show(record) + f"\nwritten: {path}")


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("examples/snips"), help="a folder with train.* and valid.*")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="of each process, after twelve that do not count")
    parser.add_argument("--also", nargs="*", default=[], help="further allocators: paths of shared libraries")
    parser.add_argument("--out", type=Path, help="of the JSON and the plot; bench/results/allocators.json by default")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of lines")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


class RunFolder:
    """What reading the data needs of a stage's context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def emit(self, event: dict[str, Any]) -> None:
        """Nobody listens."""


def read(data: Path, folder: Path) -> None:
    """The data as the first step of a build leaves it for the others, in a run folder."""
    from open_autoglm.build_steps.read_data import read_data
    from open_autoglm.pipeline import Packet

    settings = {
        "train": str(data / "train.jsonl"),
        "valid": str(data / "valid.jsonl"),
        **dict.fromkeys(("test", "task", "columns", "base", "metric", "space", "adapter")),
        "seed": 0,
        "budget": 900,
    }
    packet = read_data(Packet("bench", {"settings": settings}), RunFolder(folder))  # type: ignore[arg-type]
    write_json(folder / _PAYLOAD, dict(packet.payload))


def measured_alone(library: str, folder: Path, steps: int) -> dict[str, float]:
    """What a process finds that trains with the library."""
    bare = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", VARIABLE)}
    environment = {**bare, **allocator_environment({**bare, VARIABLE: library})}
    words = ["--alone", str(folder), "--steps", str(steps)]
    done = subprocess.run(
        [sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def train(arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of this process, by the clock and by the processors' time, and its page faults a step."""
    import torch

    from open_autoglm.build_steps.workspace import Workspace
    from open_autoglm.train.gradient_workers import workers_for
    from open_autoglm.train.trainer import Trainer

    threads = usable_cores()
    torch.set_num_threads(threads)
    work = Workspace.at(arguments.alone, json.loads((arguments.alone / _PAYLOAD).read_text(encoding="utf-8")))
    space = work.space()
    candidate = space.candidate(space.defaults)
    model = work.make_model(candidate)
    workers = workers_for(model, candidate.settings, threads)
    with tempfile.TemporaryDirectory() as folder:
        source = work.make_source(candidate.settings)
        trainer = Trainer(model, candidate.settings, source, work.rung_valid, Path(folder), workers=workers)
        trainer.run_steps(_WARM_UP_STEPS)
        tokens, faults = trainer.progress.tokens, _page_faults()
        started, processor = time.perf_counter(), time.process_time()
        trainer.run_steps(arguments.steps)
        tokens = trainer.progress.tokens - tokens
        return {
            "tokens_per_s": round(tokens / (time.perf_counter() - started), 1),
            "tokens_per_processor_s": round(tokens / (time.process_time() - processor), 1),
            "page_faults_per_step": round((_page_faults() - faults) / arguments.steps, 1),
        }


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def summarise(libraries: list[str], rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """One record with all that was measured."""
    return {
        "command": command_line(),
        "allocators": {
            library: {name: spread([row[library][name] for row in rounds]) for name in rounds[0][library]}
            | {"ratio_to_system": spread([_speed(row, library) / _speed(row, _SYSTEM) for row in rounds], 3)}
            for library in libraries
        },
        "rounds": rounds,
        "machine": describe_machine(),
    }


def _speed(row: dict[str, dict[str, float]], library: str) -> float:
    return row[library]["tokens_per_s"]


def show(record: dict[str, Any]) -> str:
    """A line for each allocator."""
    return "\n".join(
        f"{library:24} {found['tokens_per_s']['median']:8.0f} tokens/s ({found['tokens_per_s']['least']:.0f} to "
        f"{found['tokens_per_s']['most']:.0f}), {found['ratio_to_system']['median']:.2f} times the system's, "
        f"{found['page_faults_per_step']['median']:.0f} page faults a step"
        for library, found in record["allocators"].items()
    )


if __name__ == "__main__":
    main()
