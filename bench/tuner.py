# SPDX-License-Identifier: Apache-2.0
"""How soon does the tuner find what random search finds in the end? On trials that were really trained, once.

    python bench/tuner.py measure examples/snips     trains a table of tiny models: bench/results/tuner_trials.json
    python bench/tuner.py                            searches on that table: bench/results/tuner.json and .png

The table holds learning curves of random choices of the space below, each given the same computation. A choice that was
not measured gets the curve of its three nearest in the tuner's own encoding, weighted by distance. The tuner is the
product's: TPE, Hyperband, journal and all; only its executor looks curves up instead of training. Cost is counted in
full trials: a trial that is stopped after a third of its steps costs a third.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from machine import command_line, describe_machine
from open_autoglm.search.parameters import ParameterSpace, Value, categorical, integer, log_uniform, uniform
from open_autoglm.search.plan import RUNGS, Plan, training_flops
from open_autoglm.search.space import Candidate, Frame, SearchSpace, architecture_of
from open_autoglm.search.trial import JUDGED, Rung, TrialOrder, TrialRecord
from open_autoglm.search.tuner import Tuner
from open_autoglm.storage import write_json
from open_autoglm.train.settings import TrainingSettings

RESULTS = Path(__file__).parent / "results"
TABLE = RESULTS / "tuner_trials.json"
SPACE = ParameterSpace(
    (
        integer("layers", 1, 3),
        integer("hidden_size", 32, 128, step=32),
        log_uniform("learning_rate", 3e-4, 3e-2),
        categorical("tokens_per_batch", (128, 256, 512)),
        log_uniform("weight_decay", 0.01, 0.3),
        uniform("dropout", 0.0, 0.3, step=0.1),
        integer("warmup_steps", 2, 12, step=2),
        categorical("partial_rotary_factor", (0.5, 1.0)),
    )
)
MIDDLE = SPACE.decode(np.full(SPACE.size, 0.5))
"""The first trial: the middle of each range, so that no knowledge of the data set helps the tuner."""

NEIGHBOURS = 3
SEEDS = 5


def candidate(values: dict[str, Value], frame: Frame) -> Candidate:
    names = ("learning_rate", "tokens_per_batch", "weight_decay", "dropout", "warmup_steps")
    settings = TrainingSettings(**{name: values[name] for name in names})  # type: ignore[arg-type]
    return Candidate(architecture_of(frame, {**values, "feed_forward_ratio": 2.0}), settings)


def measure(data: Path, *, choices: int, trial_flops: float, rows: int) -> None:
    """Train the table, adding to what is there already."""
    import torch

    from open_autoglm.data import encode_examples, prepare, train_tokenizer
    from open_autoglm.models.glm import GlmForCausalLM
    from open_autoglm.train.trainer import FixedExamples, Schedule, Trainer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "train.jsonl"
        lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        part.write_text("".join(lines[:rows]), encoding="utf-8")
        prepared = prepare(part, valid=data / "valid.jsonl")
    train, valid = prepared.train[:rows], prepared.valid[:48]
    tokenizer = train_tokenizer(train, prepared.task)
    encoded, checked = (encode_examples(part, tokenizer, prepared.task, max_length=256) for part in (train, valid))
    mean_length = float(encoded.lengths.mean())
    size = -(-tokenizer.get_vocab_size() // 32) * 32
    frame = Frame(size, 512, (0,), 0)
    record: dict[str, Any] = json.loads(TABLE.read_text()) if TABLE.exists() else {"trials": []}
    generator = np.random.default_rng(0)
    for place in range(choices):
        values = SPACE.draw(generator)
        if place < len(record["trials"]):
            continue
        found = candidate(values, frame)
        per_step = training_flops(found.config, mean_length) * found.settings.tokens_per_batch
        steps = max(RUNGS, round(trial_flops / per_step))
        model = GlmForCausalLM(found.config)
        model.set_dropout(found.settings.dropout)
        model.initialize(torch.Generator().manual_seed(0))
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(model, found.settings, FixedExamples(encoded), checked, Path(folder))
            for rung in range(1, RUNGS + 1):
                trainer.run(Schedule(total_steps=round(steps * rung / RUNGS)))
            losses = [round(float(row["valid_loss"]), 4) for row in trainer.progress.curve]
        seconds = time.perf_counter() - started
        record["trials"].append({"values": values, "losses": losses, "steps": steps, "seconds": round(seconds, 2)})
        record |= {
            "command": command_line(),
            "rows": rows,
            "trial_flops": trial_flops,
            "machine": describe_machine(),
        }
        write_json(TABLE, record)
        print(f"{place + 1}/{choices}: {losses[-1]:.2f} after {steps} steps, {seconds:.1f} s", file=sys.stderr)


class Surrogate:
    """Curves of measured trials, and between them."""

    def __init__(self, trials: list[dict[str, Any]]) -> None:
        self._places = np.array([SPACE.encode(trial["values"]) for trial in trials])
        self._curves = np.array([trial["losses"] for trial in trials])

    def curve(self, values: dict[str, Value]) -> np.ndarray:
        """float64[rungs]: the losses of a choice."""
        distances = np.linalg.norm(self._places - SPACE.encode(values), axis=1)
        nearest = np.argsort(distances, kind="stable")[:NEIGHBOURS]
        weights = 1 / (distances[nearest] + 1e-3)
        return weights @ self._curves[nearest] / weights.sum()


class LookUp:
    """An executor that looks trials up. spent: full trials' worth, after each that was completed its loss."""

    capacity = 1

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate, self._order = surrogate, None
        self.spent = 0.0
        self.reached: list[tuple[float, float]] = []
        self.values: dict[int, dict[str, Value]] = {}

    def submit(self, order: TrialOrder) -> None:
        self._order = order

    def wait(self, listener: Any, timeout: float | None = None) -> None:
        order, self._order = self._order, None
        if order is None:
            return
        curve = self._surrogate.curve(self.values[order.number])
        done = 0
        for rung in JUDGED:
            self.spent += (rung - done) / RUNGS
            done = rung
            points = [(float(at), float(at), float(curve[at - 1])) for at in range(1, rung + 1)]
            loss = float(curve[rung - 1])
            if not listener.decide(Rung(order.number, rung, loss, 0, loss, None, 1.0, rung, points)):
                return
        self.reached.append((self.spent, loss))
        listener.finish(TrialRecord(order.number, "complete", loss, 0, loss, seconds=1.0, steps=RUNGS, curve=points))

    def close(self) -> None:
        pass


class Watch:
    """Tells the executor the values of each trial."""

    def __init__(self, executor: LookUp) -> None:
        self._executor = executor

    def started(self, trial: int, parameters: dict[str, Any]) -> None:
        self._executor.values[trial] = parameters

    def stepped(self, trial: int, step: int, steps: int, seconds: float) -> None: ...

    def judged(self, rung: Rung) -> None: ...

    def finished(self, record: TrialRecord) -> None: ...


def random_search(surrogate: Surrogate, seed: int, trials: int) -> list[tuple[float, float]]:
    generator = np.random.default_rng((seed, 1))
    return [(place + 1.0, float(surrogate.curve(SPACE.draw(generator))[-1])) for place in range(trials)]


def tuned(surrogate: Surrogate, seed: int, trials: int) -> list[tuple[float, float]]:
    executor = LookUp(surrogate)
    space = SearchSpace(Frame(64, 64, (0,), 0), seed, SPACE, dict(MIDDLE))
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(trials, None, RUNGS, None, None, RUNGS)
        Tuner(Path(folder), space, plan, executor, mean_length=8.0, watcher=Watch(executor)).run()
    return executor.reached


def cost_to_reach(reached: list[tuple[float, float]], loss: float) -> float | None:
    return next((cost for cost, value in reached if value <= loss), None)


def compare(*, trials: int) -> dict[str, Any]:
    record = json.loads(TABLE.read_text())
    surrogate = Surrogate(record["trials"])
    rows = []
    for seed in range(SEEDS):
        theirs = random_search(surrogate, seed, trials)
        best = min(loss for _, loss in theirs)
        their_cost = cost_to_reach(theirs, best)
        ours = tuned(surrogate, seed, 2 * trials)
        rows.append(
            {
                "seed": seed,
                "random_best": best,
                "random_cost": trials,
                "random_cost_when_found": their_cost,
                "tuner_cost": cost_to_reach(ours, best),
                "tuner_best_at_random_cost": min((v for c, v in ours if c <= trials), default=None),
                "random_curve": running_best(theirs),
                "tuner_curve": running_best(ours),
            }
        )
        print(json.dumps({key: value for key, value in rows[-1].items() if "curve" not in key}), file=sys.stderr)
    costs = [row["tuner_cost"] if row["tuner_cost"] is not None else float("inf") for row in rows]
    return {
        "command": command_line(),
        "what": __doc__,
        "table": {"choices": len(record["trials"]), "trial_flops": record["trial_flops"], "machine": record["machine"]},
        "trials_of_random_search": trials,
        "median_share_of_random_searchs_cost": statistics.median(costs) / trials,
        "median_share_of_the_cost_when_it_was_found": statistics.median(
            cost / row["random_cost_when_found"] for cost, row in zip(costs, rows, strict=True)
        ),
        "seeds": rows,
        "machine": describe_machine(),
    }


def running_best(reached: list[tuple[float, float]]) -> list[tuple[float, float]]:
    best, points = float("inf"), []
    for cost, loss in reached:
        best = min(best, loss)
        points.append((round(cost, 3), round(best, 4)))
    return points


def main() -> None:
    """Measure the table, or compare on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("compare", "measure"), default="compare")
    parser.add_argument("data", nargs="?", type=Path, default=Path("examples/snips"))
    parser.add_argument("--choices", type=int, default=64, help="trials to measure")
    parser.add_argument("--trial-flops", type=float, default=1e10)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--trials", type=int, default=27, help="of random search")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        measure(arguments.data, choices=arguments.choices, trial_flops=arguments.trial_flops, rows=arguments.rows)
        return
    record = compare(trials=arguments.trials)
    write_json(RESULTS / "tuner.json", record)
    from plots import plot_lines

    panels = {
        f"seed {row['seed']}": {"random search": row["random_curve"], "tuner": row["tuner_curve"]}
        for row in record["seeds"][:3]
    }
    plot_lines(panels, title="Best validation loss", label="cost, full trials", path=RESULTS / "tuner.png")
    print(json.dumps({"written": str(RESULTS / "tuner.json"), "share": record["median_share_of_random_searchs_cost"]}))


if __name__ == "__main__":
    main()
