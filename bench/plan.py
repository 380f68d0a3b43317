# SPDX-License-Identifier: Apache-2.0
"""How near are the memory and the speeds that `open-autoglm plan` says to those of the whole model in the engine?

python bench/plan.py

Each case is run in processes of its own, in turns: what `plan` finds, then what a checkpoint of that shape takes, with
the KV cache filled, and how fast it is. Several of each, whose median counts, as a process's speed depends on where in
memory its weights happen to lie: on a virtual machine some of it is read half as fast again as the rest. Writes
bench/results/plan.json, and a plot where matplotlib is installed. Six minutes on a quiet machine;
`load_average_before` and `quiet` say whether it was one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from columns import PREFILL_TOKENS, significant, table
from engine import RESULTS
from machine import command_line, describe_machine, resident_bytes
from model_steps import BLOCK_SIZE, EngineSteps
from open_autoglm import LLM
from open_autoglm.engine.backends import load_backend
from open_autoglm.engine.engine import Engine
from open_autoglm.models.config import ModelConfig
from open_autoglm.planning.machine import measure_this_machine
from open_autoglm.planning.memory import estimate_memory, kv_blocks
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.timing import MeasuredSpeeds
from open_autoglm.storage import write_json
from open_autoglm.targets import usable_cores
from plots import plot_bars
from random_checkpoint import ensure_checkpoint
from shapes import SHAPES

CASES = (
    ("built-19m", "int8"),
    ("built-19m", "float32"),
    ("edge-75m", "int4"),
    ("edge-75m", "int8"),
    ("edge-75m", "bfloat16"),
    ("edge-1.5b", "int8"),
)
"""The last is too large for a plan to time all its layers."""
CONTEXTS = (24, 512)
"""Tokens of context of the decode figures: few, as in bench/engine.py, and what a plan shows."""
AIM = 0.2
_SEQUENCES, _CONTEXT_FILLED, _ANSWER = 8, 1024, 16
_STEPS, _BURSTS = 16, 3
_LARGE = 1e9
_LEAST = 5.0
"""Seconds for which speeds are measured at least: a small model's steps would all fall into one bad moment else."""
_SPEED_BLOCKS = 2 * _SEQUENCES * max(CONTEXTS) // BLOCK_SIZE
_QUIET = 0.5


def main() -> None:
    """Run all cases, write the results after each, print a table."""
    arguments = parse()
    if arguments.case:
        print(json.dumps(run_case(*arguments.case, arguments)))
        return
    machine, result = describe_machine(), dict[str, Any]()
    cases = [(shape, weights) for shape, weights in CASES if arguments.only is None or weights in arguments.only]
    with tempfile.TemporaryDirectory() as temporary:
        models = arguments.model_folder or Path(temporary)
        for shape in dict(cases):
            ensure_checkpoint(shape, models)
        records: list[dict[str, Any]] = []
        out = arguments.out or RESULTS / "plan.json"
        for shape, weights in cases:
            records.append(_compare(shape, weights, models, arguments))
            worst = max(abs(error) for record in records for error in record["errors"].values())
            result = {
                "command": command_line(),
                "aim": AIM,
                "worst_error": round(worst, 3),
                "note": "errors are estimate / measurement - 1, of the medians of processes, each the best of seconds",
                "quiet": machine["load_average_before"] < _QUIET,
                "machine": machine,
                "cases": records,
            }
            write_json(out, result)
    errors = {name: [100 * record["errors"][name] for record in records] for name in records[0]["errors"]}
    names = [f"{record['shape']}\n{record['weights']}" for record in records]
    title = f"Estimates of `open-autoglm plan` beside measurements, load {machine['load_average_before']}"
    plot_bars(names, errors, title=title, unit="% too high", path=out.with_suffix(".png"), line=0.0)
    print(json.dumps(result) if arguments.json else _show(records) + f"\nwritten: {out}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=3, help="of estimates and of measurements of a case")
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--budget", type=float, default=6.0, help="seconds of a case after which to repeat no more")
    parser.add_argument("--only", nargs="*", help="formats of weights; all cases if not given")
    parser.add_argument("--model-folder", type=Path, help="where the random checkpoints are kept; a temporary one else")
    parser.add_argument("--out", type=Path, help="of the JSON and the plot; bench/results by default")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--estimate", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--case", nargs=2, metavar=("SHAPE", "WEIGHTS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(shape: str, weights: str, models: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case: estimates and measurements in turns, and how far their medians are apart."""
    # Weights of gigabytes lie in fast and slow parts of memory at once.
    count = arguments.processes if SHAPES[shape].weight_bytes(weights) < _LARGE else 1
    estimates, measurements = list[dict[str, Any]](), list[dict[str, Any]]()
    for _ in range(count):
        estimates.append(_in_a_process(shape, weights, models, arguments, "--estimate"))
        measurements.append(_in_a_process(shape, weights, models, arguments))
    names = tuple(measurements[0])
    measured, estimated = (
        {name: statistics.median(one[name] for one in runs) for name in names} for runs in (measurements, estimates)
    )
    return {
        "shape": shape,
        "weights": weights,
        "kv_dtype": "float32" if weights == "float32" else "bfloat16",
        "sequences": _SEQUENCES,
        "context": _CONTEXT_FILLED,
        "memory_parts": estimates[0]["memory_parts"],
        "processes": count,
        "seconds_of_estimates": round(statistics.median(one["seconds"] for one in estimates), 1),
        "layers": SHAPES[shape].layers,
        "layers_timed": {str(context): estimates[0][f"layers_at_{context}"] for context in CONTEXTS},
        "measured": {name: significant(value) for name, value in measured.items()},
        "estimated": {name: significant(value) for name, value in estimated.items()},
        "errors": {name: round(estimated[name] / measured[name] - 1, 3) for name in measured},
        "measured_in_each": {name: [significant(one[name]) for one in measurements] for name in names},
        "estimated_in_each": {name: [significant(one[name]) for one in estimates] for name in names},
    }


def _in_a_process(shape: str, weights: str, models: Path, arguments: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Half a case in a process of its own, so that its memory is its own."""
    words = ["--case", shape, weights, "--model-folder", str(models), *more]
    words += ["--repetitions", str(arguments.repetitions), "--budget", str(arguments.budget)]
    print(f"{shape} {weights} {'estimate' if more else 'measurement'} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_case(shape: str, weights: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What is measured, or what `plan` would say, of one case."""
    config = ModelConfig.from_hf(SHAPES[shape].huggingface_config())
    kv_dtype = "float32" if weights == "float32" else "bfloat16"
    setup = Setup("native", weights, kv_dtype, usable_cores(), _SEQUENCES, _CONTEXT_FILLED)
    if arguments.estimate:
        return _estimate(config, setup)
    folder = ensure_checkpoint(shape, arguments.model_folder)
    # Memory first, before the benchmark's own loops take any.
    resident = _fill(folder, setup)
    return {"memory": float(resident), **_time(_load(folder, setup), arguments.repetitions, arguments.budget)}


def _estimate(config: ModelConfig, setup: Setup) -> dict[str, Any]:
    began = time.monotonic()
    target, speeds = measure_this_machine(), MeasuredSpeeds()
    memory = estimate_memory(config, setup, target, server=False)
    found: dict[str, Any] = {"memory": float(memory.total)}
    for context in CONTEXTS:
        # A plan times one setup at one context; the first prompt's figure is the plan's.
        speed = speeds.of(config, setup, target, prompt_tokens=PREFILL_TOKENS, context=context)
        assert speed is not None and speed.measured_layers is not None
        found |= {"prefill": speed.prefill, f"decode_x1_at_{context}": speed.decode_x1}
        found |= {f"decode_x8_at_{context}": speed.decode_x8, f"layers_at_{context}": speed.measured_layers}
    return {**found, "seconds": time.monotonic() - began, "memory_parts": memory.to_dict()}


def _time(backend: Any, repetitions: int, budget: float) -> dict[str, float]:
    """Tokens per second, the best of the repetitions; of decoding the best of bursts, whose median step counts."""
    batch = _SEQUENCES * max(CONTEXTS)
    engine = Engine(backend, kv_blocks=_SPEED_BLOCKS, max_batch_tokens=batch, block_size=BLOCK_SIZE, stop_token_ids=())
    steps, found = EngineSteps(engine, backend.vocab_size), dict[str, float]()
    steps.step(1, PREFILL_TOKENS, 0)
    begun, done = time.monotonic(), 0
    while not done or (time.monotonic() - begun < budget and (done < repetitions or time.monotonic() - begun < _LEAST)):
        done += 1
        speeds = {"prefill": PREFILL_TOKENS / steps.step(1, PREFILL_TOKENS, 0)}
        for context in CONTEXTS:
            start = max(1, context - _BURSTS * _STEPS // 2)
            for count in (1, _SEQUENCES):
                steps.step(count, start, 0)
                taken = [
                    statistics.median(steps.step(count, 1, start + burst * _STEPS + step) for step in range(_STEPS))
                    for burst in range(_BURSTS)
                ]
                speeds[f"decode_x{count}_at_{context}"] = count / min(taken)
        found = {name: max(value, found.get(name, 0.0)) for name, value in speeds.items()}
    return found


def _load(folder: Path, setup: Setup) -> Any:
    rounded = setup.weights in ("int8", "int4")
    return load_backend(
        setup.backend,
        folder,
        weights=setup.weights if rounded else "float32",
        dtype="bfloat16" if setup.weights == "bfloat16" else "float32",
        kv_dtype=setup.kv_dtype,
        threads=setup.threads,
    )


def _fill(folder: Path, setup: Setup) -> int:
    """Resident bytes of this process after every page of the cache was written.

    The first answers are still going on when the last prompt is read: pages of an answer that is done are used again.
    """
    rounded, wide = setup.weights in ("int8", "int4"), setup.weights == "bfloat16"
    prompt = [2 + place % 500 for place in range(setup.context - _ANSWER)]
    with LLM(
        folder,
        quantize=setup.weights if rounded else None,
        dtype="bfloat16" if wide else None,
        kv_cache_dtype=setup.kv_dtype,
        threads=setup.threads,
        kv_blocks=kv_blocks(setup),
        max_sequences=setup.sequences,
        enable_prefix_caching=False,
    ) as llm:
        llm.generate(prompt_token_ids=[prompt] * setup.sequences, max_tokens=_ANSWER, temperature=0.0, ignore_eos=True)
        return resident_bytes()


def _show(records: list[dict[str, Any]]) -> str:
    rows: dict[str, list[str]] = {}
    for record in records:
        cells = [f"{record['measured'][name]:g} / {record['estimated'][name]:g}" for name in record["errors"]]
        rows[f"{record['shape']} {record['weights']}"] = cells
        rows[f"  {record['shape']} {record['weights']} error"] = [f"{e:+.0%}" for e in record["errors"].values()]
    headings = [f"{name}, measured / estimated" for name in records[0]["errors"]]
    return table(headings, rows)


if __name__ == "__main__":
    main()
