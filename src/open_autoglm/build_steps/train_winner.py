# SPDX-License-Identifier: Apache-2.0
"""Step 3: the winner goes on to the end of the budget while its learning rate falls."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Final

from open_autoglm.build_steps.training_time import TrainingTime
from open_autoglm.build_steps.workspace import (
    SCORE_EXAMPLES,
    Workspace,
    say,
    since_process_start,
    use_threads,
    with_result,
)
from open_autoglm.evaluate import Evaluation
from open_autoglm.models.adapter_files import write_adapter
from open_autoglm.models.checkpoint import save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.progress import ProgressBar
from open_autoglm.search.plan import Plan
from open_autoglm.search.space import Candidate
from open_autoglm.storage import read_json, replacing, write_json
from open_autoglm.train.curves import CURVE_FILE
from open_autoglm.train.gradient_workers import workers_for
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import Schedule, Trainer

_LEAST_STEPS: Final = 20


def train_winner(packet: Packet, context: StageContext) -> Packet:
    """Step 3: the winner goes on to the end of the budget while its learning rate falls, in `train/`."""
    started = time.monotonic() - since_process_start()
    work = Workspace(packet, context)
    found = packet.payload["search"]
    candidate = Candidate(ModelConfig.from_dict(found["config"]), TrainingSettings.from_dict(found["training"]))
    plan = Plan.from_dict(found["plan"])
    use_threads(plan.threads)
    folder = context.folder / "train"
    _take_over(context.folder / found["folder"], folder)
    model = work.make_model(candidate)
    trainer = Trainer(
        model,
        candidate.settings,
        work.make_source(candidate.settings),
        work.rung_valid,
        folder,
        events=True,
        workers=workers_for(model, candidate.settings, plan.threads),
    )
    seconds = None if plan.train_seconds is None else _seconds_for_training(packet, time.monotonic() - started)
    allowed = TrainingTime(work, found, seconds)
    _run_to_the_end(trainer, allowed, plan, found, context)
    chosen, score = _choose_weights(trainer, work)
    trainer.record({f"valid_{name}": value for name, value in score.metrics.items()})
    adapter = work.adapter_of(candidate.settings)
    if adapter is not None:
        write_adapter(trainer.model, adapter, folder / "adapter", base=str(work.settings["base"]))
    save_model(trainer.model, folder / "model")
    trainer.curves.close()
    result = {
        "steps": trainer.progress.step,
        "tokens": trainer.progress.tokens,
        "train_seconds": round(trainer.progress.seconds, 2),
        "checkpoint": chosen,
        "metrics": score.metrics,
        "value": score.value,
        "interval": score.interval,
        "curve": trainer.progress.curve,
        "restarts": trainer.progress.restarts,
        "finish_seconds": allowed.finish_seconds,
        "adapter": None if adapter is None else adapter.to_dict(),
        "seconds": round(time.monotonic() - started, 2),
    }
    context.emit({"event": "training_finished", **{key: result[key] for key in ("steps", "tokens", "metrics")}})
    say(f"train: {work.prepared.task.metric} {score.value:.4f} on the validation split")
    return with_result(packet, "train", result)


def _take_over(trial: Path, folder: Path) -> None:
    """Begin with the checkpoint and the curve of the winning trial, unless this step has begun before."""
    if (folder / "checkpoint.safetensors").exists():
        return
    for name in (CURVE_FILE, "checkpoint.safetensors"):  # the checkpoint last: it says that all is there
        if (trial / name).exists():
            with replacing(folder / name) as temporary:
                shutil.copyfile(trial / name, temporary)


def _choose_weights(trainer: Trainer, work: Workspace) -> tuple[str, Evaluation]:
    """Leave in the model the weights that answer best: the last, their moving average, or those of lowest loss."""
    examples = work.prepared.valid[:SCORE_EXAMPLES]
    scores = {"last": work.score(trainer.model, examples)}
    if trainer.average is not None:
        with trainer.average.in_place():
            scores["average"] = work.score(trainer.model, examples)
    best_step = min(trainer.progress.curve, key=lambda row: row["valid_loss"])["step"]
    if best_step != trainer.progress.step and trainer.load_best():
        scores["lowest_loss"] = work.score(trainer.model, examples)
    sign = 1 if work.prepared.task.higher_is_better else -1
    chosen = max(scores, key=lambda name: sign * scores[name].value)  # the first of equals
    if chosen != "lowest_loss":
        trainer.load_last(averaged=chosen == "average")
    return chosen, scores[chosen]


def _seconds_for_training(packet: Packet, spent: float) -> float:
    """What the budget has left once all before and after it is taken off, but at least a third of the plan's figure."""
    payload = packet.payload
    budget = float(payload["settings"]["budget"])
    before = payload["data"]["seconds"] + payload["search"]["seconds"] + spent
    planned = float(payload["search"]["plan"]["train_seconds"])
    return max(planned / 3, budget - before - float(payload["search"]["finish_seconds"]))


def _run_to_the_end(
    trainer: Trainer, allowed: TrainingTime, plan: Plan, found: dict[str, Any], context: StageContext
) -> None:
    """Train in segments. By time, the end is set anew after each from the speed so far, and written down."""
    path = trainer.folder / "schedule.json"
    start = int(found["steps"])
    if path.exists():
        total = int(read_json(path)["total_steps"])
    elif plan.train_steps is not None:
        total = max(plan.train_steps, start + 1)
    else:
        speed = found["trial_seconds"] / start
        total = start + max(_LEAST_STEPS, round((allowed.left(trainer, 0.0) or 0.0) / speed))
    known_restarts = len(trainer.progress.restarts)
    write_json(path, {"total_steps": total, "decay_from": start})
    with ProgressBar("train", total - start) as bar:
        while trainer.progress.step < total:
            segment = max(1, (total - start) // allowed.segments(trainer.evaluation_seconds))
            schedule = Schedule(total_steps=total, decay_from=start)
            trainer.run(
                schedule,
                lambda progress, loss: bar.update(progress.step - start, f"step {progress.step}, loss {loss:.3f}"),
                until=trainer.progress.step + segment,
            )
            for restart in trainer.progress.restarts[known_restarts:]:
                context.emit({"event": "training_restarted", **restart})
                bar.say(
                    f"train: {restart['reason']} at step {restart['failed_step']}; went on from step "
                    f"{restart['continued_from']} with {restart['rate_scale']:.3g} of the learning rate"
                )
            known_restarts = len(trainer.progress.restarts)
            row = trainer.progress.curve[-1]
            context.emit({"event": "evaluated", **row})
            spent = trainer.progress.seconds - found["trial_seconds"]
            done = trainer.progress.step - start
            left = allowed.left(trainer, done / (total - start))
            if left is not None and done and spent > 0:
                total = trainer.progress.step + round(left * done / spent)
                write_json(path, {"total_steps": total, "decay_from": start})
                bar.expect(total - start)
