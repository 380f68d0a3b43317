# SPDX-License-Identifier: Apache-2.0
"""Step 2: baselines, architectures under a constraint, then trials over architectures and hyper-parameters."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from open_autoglm.build_steps.find_front import find_front
from open_autoglm.build_steps.search_view import SearchView, show_plan
from open_autoglm.build_steps.trial_bench import OPENED_BY, TrialBench
from open_autoglm.build_steps.workspace import SCORE_EXAMPLES, Workspace, say, since_process_start, with_result
from open_autoglm.data import encode_examples
from open_autoglm.errors import ConfigurationError
from open_autoglm.evaluate import score_texts
from open_autoglm.models.config import ModelConfig
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.search.baselines import score_baselines
from open_autoglm.search.evolution import PARETO_FILE
from open_autoglm.search.executors import Executor, InlineExecutor, ProcessExecutor
from open_autoglm.search.leaderboard import BOARD_FILE, Leaderboard
from open_autoglm.search.plan import Plan, measured_finish_seconds, plan_by_steps, plan_by_time, training_flops
from open_autoglm.search.space import Candidate, SearchSpace
from open_autoglm.search.speed import measure_flops_per_second
from open_autoglm.search.tuner import TrialOutcome, Tuner
from open_autoglm.storage import read_json, write_json
from open_autoglm.targets import HardwareConstraint, usable_cores

_LEAST_PARALLEL_BUDGET: Final = 240.0
_PARALLEL_GAIN: Final = 1.15
"""How much more several trials at a time must compute than one alone, to be worth their processes."""

_BASELINE_VALID: Final = 5000
_TRAINING_SHARE: Final = 0.6
"""Of the budget, about what the winner is trained for; only the order of architectures depends on it."""


def search_models(packet: Packet, context: StageContext) -> Packet:
    """Step 2: baselines, then trials over architectures and hyper-parameters, in `search/`."""
    start_seconds = since_process_start()
    started = time.monotonic() - start_seconds
    work = Workspace(packet, context)
    folder = context.folder / "search"
    board = _score_baselines(work)
    board.save(context.folder / BOARD_FILE)
    space = work.space(folder / "space.json")
    if not (folder / "space.json").exists():
        write_json(folder / "space.json", space.to_dict())
    payload = {"settings": packet.payload["settings"], "data": packet.payload["data"]}
    trials = _Trials(work, space, folder, {"folder": str(context.folder), "payload": payload})
    try:
        if front := trials.evolve():
            space = trials.use_front(front["members"])
            board = replace(board, front=front)
            board.save(context.folder / BOARD_FILE)
        plan = trials.plan(time.monotonic() - started)
        executor = trials.executor(plan)
        with SearchView(plan, work.task.metric, context.emit) as view:
            sampler = work.settings.get("sampler")
            tuner = Tuner(folder, space, plan, executor, mean_length=work.mean_length, watcher=view, sampler=sampler)
            outcome = tuner.run()
    finally:
        trials.close()
    for entry in tuner.entries():
        board = board.with_entry(entry)
    board.save(context.folder / BOARD_FILE)
    config = outcome.candidate.config
    say(
        f"search: trial {outcome.number} goes on: {config.num_parameters() / 1e6:.2f}M parameters, "
        f"{config.num_hidden_layers} layers of {config.hidden_size}"
    )
    return with_result(
        packet,
        "search",
        {
            "trial": outcome.number,
            "config": config.to_dict(),
            "training": outcome.candidate.settings.to_dict(),
            "steps": outcome.steps,
            "trial_seconds": outcome.seconds,
            "folder": str(outcome.folder.relative_to(context.folder)),
            "plan": plan.to_dict(),
            **_finish(work, outcome, start_seconds),
            "seconds": round(time.monotonic() - started, 2),
        },
    )


def _score_baselines(work: Workspace) -> Leaderboard:
    task, valid = work.task, work.prepared.valid[:_BASELINE_VALID]
    board = Leaderboard(
        task.metric,
        task.higher_is_better,
        task=task.kind.value,
        validation=min(len(work.prepared.valid), SCORE_EXAMPLES),
    )
    tokens = None
    if task.metric == "perplexity":
        scored = work.prepared.valid[:SCORE_EXAMPLES]
        tokens = work.train, encode_examples(scored, work.tokenizer, task, max_length=work.summary["max_length"])

    def score(answers: Any, references: Any) -> tuple[float, tuple[float, float] | None]:
        found = score_texts(task, answers, references, work.metric)
        return found.value, found.interval

    for entry in score_baselines(task, work.prepared.train, valid, score=score, tokens=tokens):
        board = board.with_entry(entry)
        say(f"search: baseline {entry.name}: {task.metric} {entry.score:.4f}, {entry.seconds:.1f} s")
    return board


def _finish(work: Workspace, outcome: TrialOutcome, start_seconds: float) -> dict[str, Any]:
    """What the steps after training will take, by what judging the winner took, and the answers that are part of it."""
    record = outcome.record
    per_answer = record.judging_seconds / max(1, record.examples)
    answers = 4 * min(len(work.prepared.valid), SCORE_EXAMPLES) + len(work.prepared.test)
    seconds = measured_finish_seconds(
        float(work.settings["budget"]),
        start_seconds=start_seconds,
        seconds_per_answer=per_answer,
        answers=answers,
        size_bytes=4 * record.parameters,
    )
    return {"finish_seconds": seconds, "answers": answers, "seconds_per_answer": per_answer}


class _Trials:
    """Decides how trials run: how many at a time, where, and how long."""

    def __init__(self, work: Workspace, space: SearchSpace, folder: Path, context: dict[str, Any]) -> None:
        self._work, self._space, self._folder, self._context = work, space, folder, context
        self._bench = TrialBench(work)
        self._executor: Executor | None = None
        self._rates: dict[int, float] = {}

    def plan(self, spent: float) -> Plan:
        """The plan of this run: read back if it was made before, so that a continued build keeps it."""
        path = self._folder / "plan.json"
        if path.exists():
            return Plan.from_dict(read_json(path))
        settings = self._work.settings
        if settings["steps"] is not None:
            plan = plan_by_steps(settings["steps"], settings["trials"], parallel=settings.get("parallel_trials") or 1)
        else:
            plan = self._plan_by_time(spent)
        write_json(path, plan.to_dict())
        return plan

    def evolve(self) -> dict[str, Any] | None:
        """The Pareto front under the user's constraint, as `ParetoFront.to_dict` has it; None without a constraint.

        Read back if it was found before. Raises ConfigurationError when no architecture keeps the constraint.
        """
        constraint = HardwareConstraint.of(self._work.settings.get("hardware_constraint") or {})
        if not constraint:
            return None
        path = self._folder / PARETO_FILE
        if not path.exists():
            find_front(self._work, self._space, constraint, flops=self._training_flops(), threads=usable_cores()).save(
                self._folder
            )
        return read_json(path)

    def use_front(self, members: list[dict[str, Any]]) -> SearchSpace:
        """Search among the chosen architectures of a front instead of all."""
        chosen = tuple(ModelConfig.from_dict(member["config"]) for member in members if member["chosen"])
        self._space = self._space.with_front(chosen)
        return self._space

    def executor(self, plan: Plan) -> Executor:
        """Where the trials of a plan run."""
        kind = self._work.settings.get("executor", "auto")
        if kind == "ray":
            self._executor = self._executor or self._ray(plan)
        elif plan.parallel > 1 or kind == "process":
            if self._executor is None:
                threads = plan.trial_threads or plan.threads or usable_cores()
                self._executor = self._processes(plan.parallel, threads)
        else:
            self.close()
            self._executor = InlineExecutor(self._bench)
        return self._executor

    def close(self) -> None:
        """End the processes of trials."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def _processes(self, count: int, threads: int) -> ProcessExecutor:
        return ProcessExecutor(OPENED_BY, self._context, count=count, threads=threads)

    def _ray(self, plan: Plan) -> Executor:
        try:
            from open_autoglm.search.ray_executor import RayExecutor
        except ModuleNotFoundError as missing:
            if missing.name != "ray":
                raise
            raise ConfigurationError(
                "--executor ray needs Ray, which is not installed; run: pip install 'open-autoglm[ray]'"
            ) from None
        return RayExecutor(
            OPENED_BY,
            self._context,
            count=plan.parallel,
            threads=plan.trial_threads or plan.threads or 1,
            address=os.environ.get("RAY_ADDRESS"),
        )

    def _plan_by_time(self, spent: float) -> Plan:
        work, started = self._work, time.monotonic()
        budget = float(work.settings["budget"])
        default = self._default()
        per_token = training_flops(default.config, work.mean_length)
        threads, rate = self._speed()
        parallel, each = self._parallel(budget, rate)
        spent = float(work.summary["seconds"]) + spent + time.monotonic() - started
        divide = partial(
            plan_by_time,
            budget=budget,
            elapsed=spent,
            flops_per_second=rate,
            step_flops=per_token * default.settings.tokens_per_batch,
            epoch_flops=per_token * work.summary["tokens"],
            trials=work.settings["trials"],
            threads=threads,
        )
        plan = divide(parallel=parallel, parallel_flops_per_second=each)
        if parallel > 1 and plan.trials == 1 and work.settings.get("parallel_trials") is None:
            self.close()
            plan = divide()  # one trial has all threads
        show_plan(plan, budget=budget, spent=spent, gflops=rate / 1e9)
        return plan

    def _default(self) -> Candidate:
        return self._space.candidate(self._space.parameters.check(self._space.defaults))

    def _speed(self) -> tuple[int, float]:
        """The number of threads with which the first candidate is trained fastest, and how fast that is."""
        if not self._rates:
            folder, default = self._folder / "speed", self._default()
            self._rates = {
                threads: measure_flops_per_second(self._bench, default, folder, threads=threads)
                for threads in sorted({1, usable_cores()})
            }
        return max(self._rates.items(), key=lambda item: item[1])

    def _training_flops(self) -> float:
        """About what training the winner may compute."""
        settings, default = self._work.settings, self._default()
        if settings["steps"] is not None:
            per_token = training_flops(default.config, self._work.mean_length)
            return settings["steps"] * default.settings.tokens_per_batch * per_token
        return _TRAINING_SHARE * float(settings["budget"]) * self._speed()[1]

    def _parallel(self, budget: float, rate: float) -> tuple[int, float]:
        """How many trials run at a time, and how fast each is then: several where they compute more than one alone."""
        asked, kind = self._work.settings.get("parallel_trials"), self._work.settings.get("executor", "auto")
        cores = usable_cores()
        if kind == "inline" or asked == 1 or (asked is None and (cores < 2 or budget < _LEAST_PARALLEL_BUDGET)):
            return 1, rate
        count = asked or cores
        if kind == "ray":
            return count, rate
        if asked is None and count * self._rates[1] < _PARALLEL_GAIN * rate:
            return 1, rate  # processes can be no faster than that: not worth starting them to measure
        processes = self._processes(count, 1)
        self._executor = processes
        each = sum(processes.measure()) / count
        if asked is None and each * count < _PARALLEL_GAIN * rate:
            self.close()
            return 1, rate
        return count, each
