# SPDX-License-Identifier: Apache-2.0
"""The five steps of a build, each a pipeline stage: packet in, packet out, everything else in files of the run folder.

Every step can be cut off at any moment and called again: it finds in its own folder what is done.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer

from open_autoglm.bundle import BundleManifest, QuantizationRecord, write_bundle
from open_autoglm.bundle.card import write_model_card
from open_autoglm.bundle.huggingface import read_tokenizer, write_tokenizer
from open_autoglm.chat.template import CONTROL_TOKENS, END_OF_TEXT, stop_token_ids
from open_autoglm.compress.quantize import compress_to_int8
from open_autoglm.data import (
    Example,
    PreparedData,
    TokenizedExamples,
    encode_examples,
    prepare,
    train_tokenizer,
    values_by_key,
)
from open_autoglm.errors import CheckpointError
from open_autoglm.evaluate import Evaluation, answer_room, evaluate_answers, evaluate_perplexity
from open_autoglm.models.checkpoint import INT8_FILE, load_config, load_model, save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.progress import ProgressBar
from open_autoglm.search.baselines import score_baselines
from open_autoglm.search.leaderboard import Entry, Leaderboard
from open_autoglm.search.plan import Plan, plan_by_steps, plan_by_time, training_flops
from open_autoglm.search.space import Candidate, SearchSpace
from open_autoglm.search.tuner import Tuner, measure_flops_per_second
from open_autoglm.storage import read_json, replacing, write_json
from open_autoglm.targets import resolve_target
from open_autoglm.task import TaskKind
from open_autoglm.train.augmented import AugmentedExamples
from open_autoglm.train.settings import TrainingSettings
from open_autoglm.train.trainer import ExampleSource, FixedExamples, Schedule, Trainer
from open_autoglm.version import __version__

_MAX_LENGTH: Final = 1024
_MIN_CONTEXT: Final = 512
_VOCABULARY_MULTIPLE: Final = 32
_RUNG_EXAMPLES: Final = 256
_TRIAL_SCORE_EXAMPLES: Final = 100
_SCORE_EXAMPLES: Final = 1000
_SEGMENTS: Final = 12
_SPEED_STEPS: Final = 20
_LIBRARIES: Final = ("torch", "optuna", "tokenizers", "llguidance", "numpy", "dbos")


def read_data(packet: Packet, context: StageContext) -> Packet:
    """Step 1: files -> examples, task, report, tokenizer and tokens, in `data/`."""
    started = time.monotonic()
    settings = packet.payload["settings"]
    prepared = prepare(
        Path(settings["train"]),
        valid=_path(settings["valid"]),
        test=_path(settings["test"]),
        task=settings["task"],
        columns=settings["columns"] or None,
        seed=settings["seed"],
    )
    folder = context.folder / "data"
    prepared.save(folder)
    base = _path(settings["base"])
    tokenizer = read_tokenizer(base) if base is not None else train_tokenizer(prepared.train, prepared.task)
    if base is not None and (missing := [token for token in CONTROL_TOKENS if tokenizer.token_to_id(token) is None]):
        raise CheckpointError(f"{base}: its tokenizer has no token '{missing[0]}', which GLM's chat format needs")
    longest = _MAX_LENGTH if base is None else min(_MAX_LENGTH, load_config(base).max_position_embeddings)
    for name, examples in (("train", prepared.train), ("valid", prepared.valid)):
        encode_examples(examples, tokenizer, prepared.task, max_length=longest).save(folder / f"{name}.tokens")
    with replacing(folder / "tokenizer.json") as temporary:
        temporary.write_text(tokenizer.to_str(), encoding="utf-8")
    lengths = TokenizedExamples.load(folder / "train.tokens").lengths
    summary = {
        "task": prepared.task.kind.value,
        "confidence": prepared.report.confidence,
        "reason": prepared.report.reason,
        "examples": {"train": len(prepared.train), "valid": len(prepared.valid), "test": len(prepared.test)},
        "vocabulary": tokenizer.get_vocab_size(),
        "tokens": int(lengths.sum()),
        "max_length": int(longest),
        "longest": int(lengths.max()),
        "answer_room": answer_room([*prepared.train, *prepared.valid], tokenizer),
        "digest": prepared.digest(),
        "seconds": round(time.monotonic() - started, 2),
    }
    context.emit({"event": "data_ready", **summary})
    _say(
        f"data: {summary['task']} ({prepared.report.confidence:.0%} sure: {prepared.report.reason}); "
        f"{len(prepared.train)} train, {len(prepared.valid)} valid, {len(prepared.test)} test; "
        f"{summary['vocabulary']} tokens in the vocabulary"
    )
    return _with(packet, "data", summary)


def search_models(packet: Packet, context: StageContext) -> Packet:
    """Step 2: baselines, then trials over architectures and hyper-parameters, in `search/`."""
    started = time.monotonic()
    work = _Work(packet, context)
    folder = context.folder / "search"
    board_path = context.folder / "leaderboard.json"
    task = work.prepared.task
    board = Leaderboard(task.metric, task.higher_is_better)
    for entry in score_baselines(task, work.prepared.train, work.prepared.valid):
        board = board.with_entry(entry)
        _say(f"search: baseline {entry.name}: {task.metric} {entry.score:.4f}")
    space = work.space()
    plan = _plan(work, space, folder, time.monotonic() - started)
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
    _say(
        f"search: trial {outcome.number} goes on: {outcome.candidate.config.num_parameters() / 1e6:.2f}M parameters, "
        f"{outcome.candidate.config.num_hidden_layers} layers of {outcome.candidate.config.hidden_size}"
    )
    return _with(
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


def train_winner(packet: Packet, context: StageContext) -> Packet:
    """Step 3: the winner goes on to the end of the budget while its learning rate falls, in `train/`."""
    started = time.monotonic()
    work = _Work(packet, context)
    found = packet.payload["search"]
    candidate = Candidate(ModelConfig.from_dict(found["config"]), TrainingSettings(**found["training"]))
    plan = Plan(**found["plan"])
    folder = context.folder / "train"
    checkpoint = folder / "checkpoint.safetensors"
    if not checkpoint.exists():
        with replacing(checkpoint) as temporary:
            shutil.copyfile(context.folder / found["folder"] / "checkpoint.safetensors", temporary)
    trainer = Trainer(
        work.make_model(candidate), candidate.settings, work.make_source(candidate.settings), work.rung_valid, folder
    )
    _run_to_the_end(trainer, plan, found, folder, context)
    scores = {"last": work.score(trainer.model, work.prepared.valid[:_SCORE_EXAMPLES])}
    chosen = "last"
    best_step = min(trainer.progress.curve, key=lambda row: row["valid_loss"])["step"]
    if best_step != trainer.progress.step and trainer.load_best():
        scores["lowest_loss"] = work.score(trainer.model, work.prepared.valid[:_SCORE_EXAMPLES])
        sign = 1 if work.prepared.task.higher_is_better else -1
        if sign * scores["lowest_loss"].value > sign * scores["last"].value:
            chosen = "lowest_loss"
        else:
            trainer = Trainer(
                trainer.model, candidate.settings, trainer.source, work.rung_valid, folder
            )  # reads the last checkpoint back
    save_model(trainer.model, folder / "model")
    result = {
        "steps": trainer.progress.step,
        "tokens": trainer.progress.tokens,
        "train_seconds": round(trainer.progress.seconds, 2),
        "checkpoint": chosen,
        "metrics": scores[chosen].metrics,
        "value": scores[chosen].value,
        "curve": trainer.progress.curve,
        "seconds": round(time.monotonic() - started, 2),
    }
    context.emit({"event": "training_finished", **{key: result[key] for key in ("steps", "tokens", "metrics")}})
    _say(f"train: {work.prepared.task.metric} {scores[chosen].value:.4f} on the validation split")
    return _with(packet, "train", result)


def compress_model(packet: Packet, context: StageContext) -> Packet:
    """Step 4: int8 weights beside the float32 ones, with the metric before and after, in `compress/`."""
    started = time.monotonic()
    work = _Work(packet, context)
    folder = context.folder / "compress"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(load_model(context.folder / "train" / "model"), folder)
    outcome = compress_to_int8(
        folder,
        work.prepared.task,
        lambda model: work.score(model, work.prepared.valid[:_SCORE_EXAMPLES]).value,
    )
    result = {**asdict(outcome), "seconds": round(time.monotonic() - started, 2)}
    context.emit({"event": "compressed", **result})
    _say(
        f"compress: int8 takes {outcome.size_after / 1e6:.2f} MB for {outcome.size_before / 1e6:.2f} MB; "
        f"{work.prepared.task.metric} {outcome.metric_before:.4f} -> {outcome.metric_after:.4f}"
        + ("" if outcome.accepted else "; too much lost, float32 stays the default")
    )
    return _with(packet, "compress", result)


def write_model_bundle(packet: Packet, context: StageContext) -> Packet:
    """Step 5: score the test split, once, and write the bundle in `bundle/`."""
    started = time.monotonic()
    work = _Work(packet, context)
    task, payload = work.prepared.task, packet.payload
    compressed = payload["compress"]
    weights = "int8" if compressed["accepted"] else "float32"
    staging = context.folder / ".bundle.staging"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(context.folder / "compress", staging)
    config = load_config(staging)
    write_tokenizer(work.tokenizer, staging, max_length=config.max_position_embeddings)
    valid_value = compressed["metric_after"] if weights == "int8" else compressed["metric_before"]
    metrics = {f"valid_{task.metric}": valid_value}
    if work.prepared.test:
        evaluation = work.score(load_model(staging, weights=weights), work.prepared.test, title="test")
        metrics |= {f"test_{name}": value for name, value in evaluation.metrics.items()}
        _say(f"bundle: {task.metric} {evaluation.value:.4f} on the {evaluation.n} examples of the test split")
    manifest = BundleManifest(
        name=context.folder.name,
        task=task.to_dict(),
        architecture=config.architecture,
        parameters=config.num_parameters(),
        default_weights=weights,
        quantizations={
            "int8": QuantizationRecord(
                bits=8,
                method="round-to-nearest",
                group_size=None,
                file=INT8_FILE,
                size=compressed["size_after"],
                metric_before=compressed["metric_before"],
                metric_after=compressed["metric_after"],
            )
        },
        target=resolve_target(payload["settings"]["target"]).to_dict(),
        metrics=metrics,
        lineage=_lineage(payload),
    )
    write_model_card(staging, manifest, work.prepared.report.to_dict())
    folder = context.folder / "bundle"
    write_bundle(folder, staging, manifest)
    _finish_leaderboard(context.folder, payload, metrics, config, task.metric)
    context.emit({"event": "bundle_written", "metrics": metrics})
    result = {
        "folder": folder.name,
        "task": task.kind.value,
        "metrics": metrics,
        "seconds": round(time.monotonic() - started, 2),
    }
    return _with(packet, "bundle", result)


class _Work:
    """What every step after the first needs of the run: data, tokens, tokenizer, and how to score a model."""

    def __init__(self, packet: Packet, context: StageContext) -> None:
        folder = context.folder / "data"
        self.settings = packet.payload["settings"]
        self.summary = packet.payload["data"]
        self.prepared = PreparedData.load(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.train = TokenizedExamples.load(folder / "train.tokens")
        self.mean_length = float(self.train.lengths.mean())
        self.rung_valid = encode_examples(
            self.prepared.valid[:_RUNG_EXAMPLES],
            self.tokenizer,
            self.prepared.task,
            max_length=self.summary["max_length"],
        )
        self.base = _path(self.settings["base"])

    def space(self) -> SearchSpace:
        """What may be searched here."""
        size = self.tokenizer.get_vocab_size()
        context = max(_MIN_CONTEXT, _power_of_two(2 * self.summary["longest"]))
        return SearchSpace(
            task=self.prepared.task,
            vocab_size=-(-size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE,
            max_position_embeddings=context,
            eos_token_ids=stop_token_ids(self.tokenizer),
            pad_token_id=self.tokenizer.token_to_id(END_OF_TEXT) or 0,
            seed=self.settings["seed"],
            base=load_config(self.base) if self.base is not None else None,
        )

    def make_model(self, candidate: Candidate) -> GlmForCausalLM:
        """A model to train: from nothing, or the base checkpoint."""
        if self.base is not None:
            model = load_model(self.base)
            model.config = replace(model.config, dropout=candidate.config.dropout)
            for layer in model.model.layers:
                layer.dropout = candidate.config.dropout  # pyright: ignore[reportAttributeAccessIssue]
            return model
        model = GlmForCausalLM(candidate.config)
        model.initialize(torch.Generator().manual_seed(candidate.settings.seed))
        return model

    def make_source(self, settings: TrainingSettings) -> ExampleSource:
        """The training examples, with slot values swapped where the settings ask for it."""
        if settings.augmentation == 0:
            return FixedExamples(self.train)
        return AugmentedExamples(
            self.prepared.train,
            values_by_key(self.prepared.train),
            self.prepared.task,
            self.tokenizer,
            settings.augmentation,
            settings.seed,
            self.summary["max_length"],
        )

    def score(self, model: GlmForCausalLM, examples: Sequence[Example], *, title: str | None = None) -> Evaluation:
        """The task's metric of a model, decoded by the engine; with a progress bar when `title` is given."""
        from open_autoglm.engine import LLM

        model.eval()
        task = self.prepared.task
        if task.metric == "perplexity":
            return evaluate_perplexity(model, self.tokenizer, examples, task, max_length=self.summary["max_length"])
        shown: AbstractContextManager[Any] = ProgressBar(title, len(examples)) if title else nullcontext()
        with shown as bar, LLM.from_model(model, self.tokenizer, task=task) as llm:
            on_progress: Callable[[int], None] | None = bar.update if bar is not None else None
            evaluation, _ = evaluate_answers(
                llm, examples, task, max_tokens=self.summary["answer_room"], on_progress=on_progress
            )
        return evaluation


def _plan(work: _Work, space: SearchSpace, folder: Path, spent: float) -> Plan:
    """The plan of this run: read back if it was made before, so that a continued build keeps it."""
    path = folder / "plan.json"
    if path.exists():
        return Plan(**read_json(path))
    settings = work.settings
    if settings["steps"] is not None:
        plan = plan_by_steps(settings["steps"], settings["trials"])
    else:
        import optuna

        started = time.monotonic()
        default = space.suggest(optuna.trial.FixedTrial(space.defaults()))
        per_token = training_flops(default.config, work.mean_length)
        rate = measure_flops_per_second(
            work.make_model(default), default.settings, FixedExamples(work.train), per_token, folder / "speed"
        )
        plan = plan_by_time(
            budget=settings["budget"],
            elapsed=work.summary["seconds"] + spent + time.monotonic() - started,
            flops_per_second=rate,
            step_flops=per_token * default.settings.tokens_per_batch,
            epoch_flops=per_token * work.summary["tokens"],
            trials=settings["trials"],
        )
        _say(
            f"search: {rate / 1e9:.0f} GFLOP/s here; at most {plan.trials} trials in {plan.search_seconds:.0f} s, "
            f"then {plan.train_seconds:.0f} s for the winner"
        )
    write_json(path, plan.to_dict())
    return plan


def _run_to_the_end(trainer: Trainer, plan: Plan, found: dict[str, Any], folder: Path, context: StageContext) -> None:
    """Train in segments. By time, the end is set anew after each from the speed so far, and written down."""
    path = folder / "schedule.json"
    start = int(found["steps"])
    if path.exists():
        total = int(read_json(path)["total_steps"])
    elif plan.train_steps is not None:
        total = max(plan.train_steps, start + 1)
    else:
        speed = found["trial_seconds"] / start
        total = start + max(_SPEED_STEPS, round((plan.train_seconds or 0.0) / speed))
    with ProgressBar("train", total - start) as bar:
        while trainer.progress.step < total:
            write_json(path, {"total_steps": total, "decay_from": start})
            segment = max(1, (total - start) // _SEGMENTS)
            schedule = Schedule(total_steps=total, decay_from=start)
            trainer.run(
                schedule,
                lambda progress, loss: bar.update(progress.step - start, f"step {progress.step}, loss {loss:.3f}"),
                until=trainer.progress.step + segment,
            )
            row = trainer.progress.curve[-1]
            context.emit({"event": "evaluated", **row})
            spent = trainer.progress.seconds - found["trial_seconds"]
            done = trainer.progress.step - start
            if plan.train_seconds is not None and done:
                left = max(0.0, plan.train_seconds - spent)
                total = min(total, trainer.progress.step + round(left * done / spent)) if spent else total


def _finish_leaderboard(
    folder: Path, payload: dict[str, Any], metrics: dict[str, float], config: ModelConfig, metric: str
) -> None:
    path = folder / "leaderboard.json"
    entry = Entry(
        name="final model",
        kind="final",
        score=metrics[f"valid_{metric}"],
        valid_loss=payload["train"]["curve"][-1]["valid_loss"],
        parameters=config.num_parameters(),
        seconds=payload["train"]["train_seconds"],
    )
    board = Leaderboard.load(path).with_entry(entry)
    board.save(path)
    if winner := board.winning_baseline():
        _say(
            f"note: the baseline '{winner.name}' scores {winner.score:.4f}, more than this model; a longer --budget "
            "or more data may change that, and until then the baseline is the better tool for this task"
        )


def _lineage(payload: dict[str, Any]) -> dict[str, Any]:
    versions = {"open_autoglm": __version__}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    settings = payload["settings"]
    return {
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": payload["data"]["digest"],
        "files_sha256": settings["digests"],
        "seed": settings["seed"],
        "budget_seconds": settings["budget"],
        "steps": settings["steps"],
        "versions": versions,
        "search": {"trial": payload["search"]["trial"], "training": payload["search"]["training"]},
        "seconds": {step: payload[step]["seconds"] for step in ("data", "search", "train", "compress")},
    }


def _report_trial(event: dict[str, Any], context: StageContext, bar: ProgressBar) -> None:
    context.emit(json.loads(json.dumps(event)))
    if event["event"] == "trial_finished":
        score = event.get("score")
        bar.say(
            f"search: trial {event['trial']} {event['state']}"
            + (f", validation loss {event['valid_loss']:.3f}" if "valid_loss" in event else "")
            + (f", score {score:.4f}" if score is not None else "")
            + f", {event['seconds']:.0f} s"
        )


def _with(packet: Packet, step: str, result: dict[str, Any]) -> Packet:
    return Packet(packet.session_id, {**packet.payload, step: json.loads(json.dumps(result))}, packet.metadata)


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def _say(text: str) -> None:
    ProgressBar("", 1).say(text)


__all__ = ["TaskKind", "compress_model", "read_data", "search_models", "train_winner", "write_model_bundle"]
