# SPDX-License-Identifier: Apache-2.0
"""How likely a model finds the answers: perplexity, bits per byte, and nats of each example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from open_autoglm.data import Example, TokenizedExamples, encode_examples
from open_autoglm.errors import DataError
from open_autoglm.evaluate.answering import said
from open_autoglm.evaluate.evaluation import Evaluation
from open_autoglm.metrics import perplexity_samples
from open_autoglm.task import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from open_autoglm.models.glm import GlmForCausalLM

_TOKENS_AT_ONCE: Final = 8192


def evaluate_perplexity(
    model: GlmForCausalLM,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    task: Task,
    *,
    max_length: int,
    with_intervals: bool = True,
) -> Evaluation:
    """Perplexity per token of the answers, and bits per byte of them, which compares across tokenizers.

    Raises DataError when there are no examples.
    """
    if not examples:
        raise DataError("there is nothing to evaluate: the file holds no examples")
    encoded = encode_examples(examples, tokenizer, task, max_length=max_length)
    learnt = np.add.reduceat(encoded.learn.astype(np.int64), encoded.offsets[:-1])
    sizes = np.array([sum(len(text.encode()) for text in said(example)) for example in examples])
    samples = perplexity_samples(nats_of_examples(model, encoded), learnt, sizes)
    return Evaluation.of(task, samples, with_intervals=with_intervals)


def nats_of_examples(model: GlmForCausalLM, examples: TokenizedExamples) -> np.ndarray:
    """float64[n]: what a model's answers cost in each example, summed over the tokens to learn, in nats."""
    import torch
    from torch.nn import functional as F

    from open_autoglm.models.glm import PackedSequences
    from open_autoglm.train.batches import plan_epoch

    device = next(model.parameters()).device
    nats = np.zeros(len(examples))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for chosen in plan_epoch(examples.lengths, _TOKENS_AT_ONCE, seed=0, epoch=0):
            token_ids, learn, lengths = examples.gather(chosen)
            ends = np.cumsum(lengths)
            predicts = np.zeros(len(token_ids), dtype=bool)
            predicts[:-1] = learn[1:]
            predicts[ends - 1] = False
            places = np.flatnonzero(predicts)
            ids = torch.from_numpy(token_ids.astype(np.int64)).to(device)
            hidden = model(ids, PackedSequences(torch.from_numpy(lengths).to(device)))
            at = torch.from_numpy(places).to(device)
            losses = F.cross_entropy(model.logits(hidden.index_select(0, at)).float(), ids[at + 1], reduction="none")
            owners = chosen[np.searchsorted(ends, places, side="right")]
            np.add.at(nats, owners, losses.double().cpu().numpy())
    model.train(was_training)
    return nats
