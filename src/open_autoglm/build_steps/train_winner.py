# SPDX-License-Identifier: Apache-2.0
"""Step 3: the winner goes on to the end of the budget while its learning rate falls."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

from open_autoglm.build_steps.timed_training import Course, train_to_the_end
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
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.search.plan import TEACHER_SHARE, Plan
from open_autoglm.search.space import Candidate
from open_autoglm.storage import replacing
from open_autoglm.train.curves import CURVE_FILE
from open_autoglm.train.distillation import Distillation, DistillationSettings
from open_autoglm.train.gradient_workers import workers_for
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.teachers import TeacherModels
from open_autoglm.train.trainer import Trainer

_TAUGHT_SHARE: Final = 0.7
"""What the mean of the teachers counts of the loss; the rest is what the data say."""


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
    seconds = None if plan.train_seconds is None else _seconds_for_training(packet, time.monotonic() - started)
    pace = float(found["trial_seconds"]) / int(found["steps"])
    teachers, teaching_seconds = _train_teachers(work, candidate, plan, folder, seconds, pace, context)
    model = work.make_model(candidate)
    trainer = Trainer(
        model,
        candidate.settings,
        work.make_source(candidate.settings),
        work.rung_valid,
        folder,
        events=True,
        objective=_learning_from(teachers, work) if teachers else None,
        workers=workers_for(model, candidate.settings, plan.threads),
    )
    course = Course(
        plan.train_steps,
        None if seconds is None else seconds - teaching_seconds,
        start=int(found["steps"]),
        start_seconds=float(found["trial_seconds"]),
        seconds_per_step=pace,
    )
    train_to_the_end(trainer, course, "train", context.emit)
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
        "teachers": len(teachers),
        "adapter": None if adapter is None else adapter.to_dict(),
        "seconds": round(time.monotonic() - started, 2),
    }
    context.emit({"event": "training_finished", **{key: result[key] for key in ("steps", "tokens", "metrics")}})
    say(f"train: {work.prepared.task.metric} {score.value:.4f} on the validation split")
    return with_result(packet, "train", result)


def _train_teachers(  # noqa: PLR0917
    work: Workspace,
    candidate: Candidate,
    plan: Plan,
    folder: Path,
    seconds: float | None,
    pace: float,
    context: StageContext,
) -> tuple[list[GlmForCausalLM], float]:
    """The plan's teachers, alike but for their seeds, and the seconds that their training took. pace: seconds a step.

    One that was trained before a kill is read back.
    """
    teachers: list[GlmForCausalLM] = []
    spent = 0.0
    for number in range(1, plan.teachers + 1):
        settings = replace(candidate.settings, seed=candidate.settings.seed + number)
        model = work.make_model(Candidate(candidate.config, settings))
        trainer = Trainer(
            model,
            settings,
            work.make_source(settings),
            work.rung_valid,
            folder / f"teacher-{number}",
            workers=workers_for(model, settings, plan.threads),
        )
        course = Course(
            None if plan.train_steps is None else round(TEACHER_SHARE * plan.train_steps),
            None if seconds is None else TEACHER_SHARE * seconds,
            seconds_per_step=pace,
        )
        name = f"teacher {number} of {plan.teachers}"
        train_to_the_end(trainer, course, name, lambda event, name=name: context.emit({**event, "model": name}))
        trainer.curves.close()
        teachers.append(model.eval())
        spent += trainer.progress.seconds
    return teachers, spent


def _learning_from(teachers: list[GlmForCausalLM], work: Workspace) -> Distillation:
    vocabulary = work.tokenizer.get_vocab_size()
    settings = DistillationSettings(share=_TAUGHT_SHARE, temperature=1.0)
    return Distillation(TeacherModels(teachers, settings.temperature, vocabulary), settings, vocabulary)


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
