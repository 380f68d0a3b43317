# SPDX-License-Identifier: Apache-2.0
"""A format of the weights scored example by example, as the engine will answer with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from open_autoglm.build_steps.workspace import Workspace
from open_autoglm.compress.paired_bootstrap import ExampleScores
from open_autoglm.data import Example, TokenizedExamples, encode_examples
from open_autoglm.engine import LLM
from open_autoglm.engine.backends import load_backend
from open_autoglm.evaluate import evaluate_answers, nats_of_examples
from open_autoglm.metrics import score_answers
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.quantized_linear import unpack_in_place


def score_format(work: Workspace, folder: Path, weights: str, examples: Sequence[Example]) -> ExampleScores:
    """The task's metric of each example. folder: of the model; weights: `float32`, `int8` or `int4`.

    Answers are decoded by the engine that serves, with its rounding of activations; for perplexity the probabilities
    are PyTorch's over the same weights.
    """
    task = work.prepared.task
    if task.metric == "perplexity":
        encoded = encode_examples(examples, work.tokenizer, task, max_length=work.summary["max_length"])
        model = load_model(folder, weights=weights)
        unpack_in_place(model)
        return nats_by_example(model, encoded)
    backend = load_backend("auto", folder, weights=weights)
    with LLM.from_model(backend, work.tokenizer, task=task) as llm:
        _, answers = evaluate_answers(llm, examples, task, max_tokens=work.summary["answer_room"])
    scored = [
        score_answers(task, [answer], [example.answer])[task.metric]
        for answer, example in zip(answers, examples, strict=True)
    ]
    return ExampleScores(np.array(scored), np.ones(len(scored)))


def nats_by_example(model: GlmForCausalLM, examples: TokenizedExamples) -> ExampleScores:
    """The negative log-probability of what is to be learnt of each example, and of how many tokens it is."""
    starts = examples.offsets[:-1]
    # Nothing predicts the first token.
    counts = np.add.reduceat(examples.learn.astype(np.float64), starts) - examples.learn[starts]
    return ExampleScores(nats_of_examples(model, examples), counts, is_nats=True)
