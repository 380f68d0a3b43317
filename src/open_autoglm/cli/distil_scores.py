# SPDX-License-Identifier: Apache-2.0
"""Teacher and student on the held-out examples of a distillation, by the metric of their task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_MOST_EXAMPLES: Final = 500


def score_by_task(
    folders: Mapping[str, Path],
    data: Path,
    *,
    valid: Path | None,
    test: Path | None,
    columns: Mapping[str, str] | None,
    seed: int,
) -> dict[str, Any] | None:
    """Let bundles answer the examples that were not trained on, each with its own default weights.

    folders: bundles by name; the first one has the task. data, valid, test, columns, seed: as they were trained with;
    the test split is taken, or the validation split where there is none. Returns the metric, how many examples, the
    split, and of each bundle its value and 95% interval; None for a task whose metric is perplexity, which the loss
    says. Raises DataError for the data, BundleError for the bundles.
    """
    from open_autoglm.bundle import open_bundle
    from open_autoglm.bundle.huggingface import read_tokenizer
    from open_autoglm.data import prepare
    from open_autoglm.engine import LLM
    from open_autoglm.evaluate import answer_room, evaluate_answers

    first = next(iter(folders.values()))
    task = open_bundle(first).task
    if task.metric == "perplexity":
        return None
    prepared = prepare(data, valid=valid, test=test, task=task.kind.value, columns=columns, seed=seed)
    split, examples = ("test", prepared.test) if prepared.test else ("valid", prepared.valid)
    chosen = list(examples)[:_MOST_EXAMPLES]
    if not chosen:
        return None
    room = answer_room(chosen, read_tokenizer(first))
    found: dict[str, Any] = {"metric": task.metric, "split": split, "examples": len(chosen)}
    for name, folder in folders.items():
        weights = open_bundle(folder).manifest.default_weights
        with LLM(folder, quantize=None if weights == "float32" else weights) as llm:
            evaluation, _ = evaluate_answers(llm, chosen, task, max_tokens=room)
        interval = evaluation.intervals.get(evaluation.metric)
        found[name] = {"value": evaluation.value, "interval": interval, "weights": weights}
    return found
