# SPDX-License-Identifier: Apache-2.0
"""How near are the memory and the speeds that `open-autoglm plan` estimates to what is measured here?

python bench/plan.py

Each case is run in a process of its own: its memory with the KV cache filled, and its speeds in turns with the
machine's limits, from which the estimate is made. Writes bench/results/plan.json, and a plot where matplotlib is
installed. A few minutes on a quiet machine; `load_average_before` and `quiet` say whether it was one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from columns import CONTEXT, DECODE_STEPS, PREFILL_TOKENS, significant, table, time_columns
from engine import RESULTS
from machine import RATE_OF_WEIGHTS, LimitsProbe, command_line, describe_machine, resident_bytes
from model_steps import BLOCK_SIZE, EngineSteps
from open_autoglm import LLM
from open_autoglm.engine.backends import load_backend
from open_autoglm.engine.engine import Engine
from open_autoglm.models.config import ModelConfig
from open_autoglm.planning.memory import estimate_memory, kv_blocks
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import estimate_speed
from open_autoglm.storage import write_json
from open_autoglm.targets import Target, resolve_target, usable_cores
from plots import plot_bars
from random_checkpoint import ensure_checkpoint
from shapes import SHAPES

CASES = (
    ("built-19m", "int8"),
    ("built-19m", "float32"),
    ("edge-75m", "int4"),
    ("edge-75m", "int8"),
    ("edge-75m", "bfloat16"),
)
COLUMNS = {"prefill": f"prefill {PREFILL_TOKENS}", "decode_x1": "decode x1", "decode_x8": "decode x8"}
AIM = 0.2
_SPEED_BLOCKS = 4096 // BLOCK_SIZE
_SEQUENCES, _CONTEXT_FILLED = 8, 1024
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
            records.append(_in_a_process(shape, weights, models, arguments))
            worst = max(abs(error) for record in records for error in record["errors"].values())
            result = {
                "command": command_line(),
                "aim": AIM,
                "worst_error": round(worst, 3),
                "note": "errors are estimate / measurement - 1; the best of the repetitions counts, as for the limits",
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
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of a case after which to repeat no more")
    parser.add_argument("--only", nargs="*", help="formats of weights; all cases if not given")
    parser.add_argument("--model-folder", type=Path, help="where the random checkpoints are kept; a temporary one else")
    parser.add_argument("--out", type=Path, help="of the JSON and the plot; bench/results by default")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--case", nargs=2, metavar=("SHAPE", "WEIGHTS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(shape: str, weights: str, models: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case in a process of its own, so that its memory is its own."""
    words = ["--case", shape, weights, "--model-folder", str(models)]
    words += ["--repetitions", str(arguments.repetitions), "--budget", str(arguments.budget)]
    print(f"{shape} {weights} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_case(shape: str, weights: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory first, before the benchmark's own loops take any; then limits and speeds in turns."""
    config = ModelConfig.from_hf(SHAPES[shape].huggingface_config())
    threads = usable_cores()
    kv_dtype = "float32" if weights == "float32" else "bfloat16"
    setup = Setup("native", weights, kv_dtype, threads, _SEQUENCES, _CONTEXT_FILLED)
    folder = ensure_checkpoint(shape, arguments.model_folder)
    resident = _fill(folder, setup)
    backend = _load(folder, setup)
    engine = Engine(backend, kv_blocks=_SPEED_BLOCKS, block_size=BLOCK_SIZE, stop_token_ids=())
    steps, probe = EngineSteps(engine, backend.vocab_size), LimitsProbe(threads)
    probe.measure(0.5)
    speeds = time_columns(steps.step, arguments.repetitions, arguments.budget)
    probe.measure(0.5)
    target = _target(probe.limits)
    # A column's steps see between CONTEXT and CONTEXT + DECODE_STEPS tokens.
    speed = estimate_speed(config, setup, target, prompt_tokens=PREFILL_TOKENS, context=CONTEXT + DECODE_STEPS // 2)
    assert speed is not None
    memory = estimate_memory(config, setup, server=False)
    measured = {"memory": float(resident), **{name: max(speeds[column]) for name, column in COLUMNS.items()}}
    estimated = {"memory": float(memory.total), **{name: getattr(speed, name) for name in COLUMNS}}
    return {
        "shape": shape,
        "weights": weights,
        "kv_dtype": kv_dtype,
        "sequences": _SEQUENCES,
        "context": _CONTEXT_FILLED,
        "limits": probe.limits,
        "memory_parts": memory.to_dict(),
        "measured": {name: significant(value) for name, value in measured.items()},
        "estimated": {name: significant(value) for name, value in estimated.items()},
        "errors": {name: round(estimated[name] / measured[name] - 1, 3) for name in measured},
    }


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
    """Resident bytes of this process after every page of the cache was written."""
    rounded, wide = setup.weights in ("int8", "int4"), setup.weights == "bfloat16"
    prompt = [2 + place % 500 for place in range(setup.context - 1)]
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
        llm.generate(prompt_token_ids=[prompt] * setup.sequences, max_tokens=1, temperature=0.0, ignore_eos=True)
        return resident_bytes()


def _target(limits: dict[str, Any]) -> Target:
    """This machine with the limits that were measured in this run."""
    rates = {weights: limits[name] * 1e9 for weights, name in RATE_OF_WEIGHTS.items()}
    return replace(resolve_target(), bandwidth=limits["read_gb_per_s"] * 1e9, rates=rates)


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
