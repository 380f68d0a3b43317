# SPDX-License-Identifier: Apache-2.0
"""A format of the weights scored example by example, as the engine will answer with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch.nn import functional as F

from open_autoglm.build_steps.workspace import Workspace
from open_autoglm.compress.paired_bootstrap import ExampleScores
from open_autoglm.data import Example, TokenizedExamples, encode_examples
from open_autoglm.engine import LLM
from open_autoglm.engine.backends import load_backend
from open_autoglm.evaluate import evaluate_answers
from open_autoglm.metrics import score_answers
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.models.quantized_linear import unpack_in_place

_BATCH_TOKENS: Final = 8192


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


@torch.inference_mode()
def nats_by_example(model: GlmForCausalLM, examples: TokenizedExamples) -> ExampleScores:
    """The negative log-probability of what is to be learnt of each example, and of how many tokens it is."""
    nats, counts = np.zeros(len(examples)), np.zeros(len(examples))
    for chosen in _batches(examples.lengths):
        token_ids, learn, lengths = examples.gather(chosen)
        ends = np.cumsum(lengths)
        predicts = np.append(learn[1:], False)
        predicts[ends - 1] = False
        places = np.flatnonzero(predicts)
        ids = torch.from_numpy(token_ids.astype(np.int64))
        hidden = model(ids, PackedSequences(torch.from_numpy(lengths)))
        at = torch.from_numpy(places)
        losses = F.cross_entropy(model.logits(hidden[at]).float(), ids[at + 1], reduction="none").numpy()
        owner = chosen[np.searchsorted(ends, places, side="right")]
        np.add.at(nats, owner, losses)
        np.add.at(counts, owner, 1.0)
    return ExampleScores(nats, counts, is_nats=True)


def _batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(lengths, kind="stable")
    bounds = np.searchsorted(np.cumsum(lengths[order]), np.arange(_BATCH_TOKENS, lengths.sum(), _BATCH_TOKENS))
    return (part for part in np.split(order, np.unique(bounds)) if len(part))
