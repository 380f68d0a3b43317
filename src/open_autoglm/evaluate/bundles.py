# SPDX-License-Identifier: Apache-2.0
"""Scoring a bundle on a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from open_autoglm.data import load_examples
from open_autoglm.errors import ConfigurationError
from open_autoglm.evaluate.answering import answer_room, evaluate_answers, evaluate_calls
from open_autoglm.evaluate.evaluation import Evaluation
from open_autoglm.evaluate.likelihood import evaluate_perplexity
from open_autoglm.metrics import ChosenMetric
from open_autoglm.progress import ProgressBar
from open_autoglm.spelling import did_you_mean
from open_autoglm.storage import read_json, write_atomic
from open_autoglm.task import METRICS, Task, TaskKind

EVALUATION_FILE: Final = "evaluation.json"
"""In a bundle: what the test split gave, with intervals."""


def evaluate_bundle(
    bundle: Path | str,
    data: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    weights: str | None = None,
    backend: str = "auto",
    kv_cache_dtype: str = "auto",
    threads: int | None = None,
    metric: ChosenMetric | None = None,
    answers_path: Path | None = None,
) -> Evaluation:
    """Score a bundle on a file of the shape that it was built from.

    weights: `float32`, `int8` or `int4`; the bundle's default if not given. backend, kv_cache_dtype, threads: of the
    engine that answers, as `LLM` takes them. metric: decides in place of the task's own. answers_path: where each
    answer is written beside its reference, as JSON lines.
    Raises BundleError for a folder that is not an intact bundle, DataError for the file, ConfigurationError for a
    metric that the task does not have.
    """
    from open_autoglm.bundle import open_bundle
    from open_autoglm.bundle.huggingface import read_tokenizer
    from open_autoglm.engine import LLM
    from open_autoglm.models.checkpoint import load_config, load_model

    opened = open_bundle(bundle)
    task = _deciding(opened.task, metric)
    examples = load_examples(Path(data), opened.task, columns=columns or None)
    chosen = weights or opened.manifest.default_weights
    evaluation: Evaluation | None = None
    if METRICS[task.kind] == "perplexity":
        model = load_model(opened.path, weights=chosen)
        longest = load_config(opened.path).max_position_embeddings
        evaluation = evaluate_perplexity(model, read_tokenizer(opened.path), examples, task, max_length=longest)
        if task.kind is not TaskKind.TOOL_CALLS:
            return evaluation
    with (
        LLM(
            opened.path,
            backend=backend,
            quantize=None if chosen == "float32" else chosen,
            dtype="float32",
            kv_cache_dtype=kv_cache_dtype,
            threads=threads,
        ) as llm,
        ProgressBar("eval", len(examples)) as bar,
    ):
        room = _room_of(opened.path) or answer_room(examples, read_tokenizer(opened.path))
        if evaluation is not None:
            samples, rows = evaluate_calls(llm, examples, max_tokens=room, on_progress=bar.update)
            evaluation = evaluation.with_others(samples)
        else:
            evaluation, answers = evaluate_answers(
                llm, examples, task, max_tokens=room, metric=metric, on_progress=bar.update
            )
            rows = [
                {"source": e.source, "input": e.input_text, "answer": answer, "reference": e.answer}
                for e, answer in zip(examples, answers, strict=True)
            ]
    if answers_path is not None:
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        write_atomic(answers_path, "\n".join(lines) + "\n")
    return evaluation


def deciding_metrics(task: Task) -> list[str]:
    """The metrics of ours that can decide for a task. Those of extractions depend on its schema too."""
    from open_autoglm.metrics import answer_samples

    if METRICS[task.kind] == "perplexity":
        return ["bits_per_byte", "perplexity"]
    return sorted(answer_samples(task, ["{}"], ["{}"]))


def _deciding(task: Task, metric: ChosenMetric | None) -> Task:
    """The task under the metric that is asked for; one that a build decided by a function of the user's goes back."""
    if metric is not None:
        return with_metric(task, metric)
    is_known = task.metric_rules is not None or task.metric in deciding_metrics(task)
    return task if is_known else task.with_metric(METRICS[task.kind], METRICS[task.kind] != "perplexity")


def with_metric(task: Task, metric: ChosenMetric) -> Task:
    """The task that is decided by `metric`. Raises ConfigurationError when it has no such metric."""
    is_own = metric.rules is not None or metric.file is not None or metric.plugin is not None
    known = deciding_metrics(task)
    if METRICS[task.kind] == "perplexity" and is_own:
        raise ConfigurationError(
            f"a task of kind {task.kind} is scored by how likely its answers are, not by comparing answers, so "
            f"--metric {metric.name} cannot decide; use one of {', '.join(known)}"
        )
    if not is_own and metric.name not in known:
        raise ConfigurationError(
            f"a task of kind {task.kind} has no metric '{metric.name}'{did_you_mean(metric.name, known)}"
        )
    rules = None if metric.rules is None else metric.to_dict()
    return task.with_metric(metric.name, metric.higher_is_better, rules)


def _room_of(folder: Path) -> int | None:
    """What the build wrote down for the answers of its model."""
    file = folder / "generation_config.json"
    value = read_json(file).get("max_new_tokens") if file.is_file() else None
    return value if isinstance(value, int) and value > 0 else None
