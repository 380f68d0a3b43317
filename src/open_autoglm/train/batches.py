# SPDX-License-Identifier: Apache-2.0
"""Which examples make up each batch: a pure function of lengths, seed and epoch, so that a resumed run agrees."""

from __future__ import annotations

from typing import Final

import numpy as np

from open_autoglm.errors import DataError

_WINDOW_BATCHES: Final = 16
"""Batches planned together: enough to find examples of like length, too few to order the epoch by length."""


def plan_epoch(lengths: np.ndarray, tokens_per_batch: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Shuffle the examples and pack them into batches of about `tokens_per_batch` tokens.

    lengths: int64[num_examples], tokens. A batch closes when it has reached the count, so it exceeds it by less
    than one example; an example longer than that is a batch of its own. Examples of like length sit together within
    a window of the shuffle, which keeps the padded view that attention alone needs small; linear layers see no
    padding at all. The order of the batches is shuffled again.
    Returns the example indices of each batch; every example occurs exactly once.
    Raises DataError when there is nothing to plan.
    """
    if len(lengths) == 0:
        raise DataError("there are no examples to train on")
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    window = max(1, round(_WINDOW_BATCHES * tokens_per_batch / max(1.0, float(lengths.mean()))))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), window):
        chosen = order[start : start + window]
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        filled = np.cumsum(lengths[chosen])
        ends = np.searchsorted(filled, np.arange(tokens_per_batch, filled[-1] + tokens_per_batch, tokens_per_batch))
        cuts = np.unique(np.minimum(ends + 1, len(chosen)))
        batches.extend(part for part in np.split(chosen, cuts) if len(part))
    return [batches[index] for index in generator.permutation(len(batches))]


def split_batch(lengths: np.ndarray, chosen: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut a batch into at most `parts` parts of about as many tokens, in order; each has an example.

    lengths: int64[num_examples], tokens of all examples. chosen: int64[k], those of the batch.
    """
    if parts <= 1 or len(chosen) <= 1:
        return [chosen]
    filled = np.cumsum(lengths[chosen])
    ends = filled[-1] * np.arange(1, parts) / parts
    cuts = np.unique(np.searchsorted(filled, ends) + 1)
    return [part for part in np.split(chosen, cuts) if len(part)]
