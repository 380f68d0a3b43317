# SPDX-License-Identifier: Apache-2.0
"""Step 2: baselines, then trials over architectures and hyper-parameters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import optuna
import torch

from open_autoglm.build_steps.workspace import Workspace, say, use_threads, with_result
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.progress import ProgressBar
from open_autoglm.search.baselines import score_baselines
from open_autoglm.search.leaderboard import Leaderboard
from open_autoglm.search.plan import Plan, plan_by_steps, plan_by_time, training_flops
from open_autoglm.search.space import SearchSpace
from open_autoglm.search.tuner import Tuner, measure_flops_per_second
from open_autoglm.storage import read_json, write_json
from open_autoglm.targets import usable_cores
from open_autoglm.train.trainer import FixedExamples

_TRIAL_SCORE_EXAMPLES: Final = 100


def search_models(packet: Packet, context: StageContext) -> Packet:
    """Step 2: baselines, then trials over architectures and hyper-parameters, in `search/`."""
    started = time.monotonic()
    work = Workspace(packet, context)
    folder = context.folder / "search"
    board_path = context.folder / "leaderboard.json"
    task = work.prepared.task
    board = Leaderboard(task.metric, task.higher_is_better)
    for entry in score_baselines(task, work.prepared.train, work.prepared.valid):
        board = board.with_entry(entry)
        say(f"search: baseline {entry.name}: {task.metric} {entry.score:.4f}")
    space = work.space()
    plan = _plan(work, space, folder, time.monotonic() - started)
    use_threads(plan.threads)
    with ProgressBar("search", plan.trials) as bar:
        tuner = Tuner(
            folder,
            space,
            plan,
            make_model=work.make_model,
            make_source=work.make_source,
            valid=work.rung_valid,
            mean_length=work.mean_length,
            score=lambda model: work.score(model, work.prepared.valid[:_TRIAL_SCORE_EXAMPLES]).value,
            report=lambda event: _report_trial(event, context, bar),
            on_step=lambda trial, step, steps, _: bar.update(
                trial + step / steps, f"trial {trial + 1} of {plan.trials}, step {step} of {steps}"
            ),
        )
        outcome = tuner.run()
    for entry in tuner.entries():
        board = board.with_entry(entry)
    board.save(board_path)
    say(
        f"search: trial {outcome.number} goes on: {outcome.candidate.config.num_parameters() / 1e6:.2f}M parameters, "
        f"{outcome.candidate.config.num_hidden_layers} layers of {outcome.candidate.config.hidden_size}"
    )
    return with_result(
        packet,
        "search",
        {
            "trial": outcome.number,
            "config": outcome.candidate.config.to_dict(),
            "training": outcome.candidate.settings.to_dict(),
            "steps": outcome.steps,
            "trial_seconds": outcome.seconds,
            "folder": str(outcome.folder.relative_to(context.folder)),
            "plan": plan.to_dict(),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _plan(work: Workspace, space: SearchSpace, folder: Path, spent: float) -> Plan:
    """The plan of this run: read back if it was made before, so that a continued build keeps it."""
    path = folder / "plan.json"
    if path.exists():
        return Plan(**read_json(path))
    settings = work.settings
    if settings["steps"] is not None:
        plan = plan_by_steps(settings["steps"], settings["trials"])
    else:
        started = time.monotonic()
        default = space.suggest(optuna.trial.FixedTrial(space.defaults()))
        per_token = training_flops(default.config, work.mean_length)
        rates: dict[int, float] = {}
        for threads in sorted({1, usable_cores()}):
            torch.set_num_threads(threads)
            rates[threads] = measure_flops_per_second(
                work.make_model(default), default.settings, FixedExamples(work.train), per_token, folder / "speed"
            )
        threads, rate = max(rates.items(), key=lambda item: item[1])
        plan = plan_by_time(
            budget=settings["budget"],
            elapsed=work.summary["seconds"] + spent + time.monotonic() - started,
            flops_per_second=rate,
            step_flops=per_token * default.settings.tokens_per_batch,
            epoch_flops=per_token * work.summary["tokens"],
            trials=settings["trials"],
            threads=threads,
        )
        say(
            f"search: {rate / 1e9:.0f} GFLOP/s here with {threads} threads; at most {plan.trials} trials in "
            f"{plan.search_seconds:.0f} s, then {plan.train_seconds:.0f} s for the winner"
        )
    write_json(path, plan.to_dict())
    return plan


def _report_trial(event: dict[str, Any], context: StageContext, bar: ProgressBar) -> None:
    context.emit(event)
    if event["event"] == "trial_finished":
        score = event.get("score")
        bar.say(
            f"search: trial {event['trial']} {event['state']}"
            + (f", validation loss {event['valid_loss']:.3f}" if "valid_loss" in event else "")
            + (f", score {score:.4f}" if score is not None else "")
            + f", {event['seconds']:.0f} s"
        )
