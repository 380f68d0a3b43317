# SPDX-License-Identifier: Apache-2.0
"""A language model of pairs of tokens, smoothed by Kneser and Ney: what counting alone knows of the next token."""

from __future__ import annotations

from typing import Final

import numpy as np

from open_autoglm.data import TokenizedExamples

_DISCOUNT: Final = 0.75


def nats_of_pairs(train: TokenizedExamples, valid: TokenizedExamples) -> tuple[np.ndarray, np.ndarray]:
    """What the tokens to learn of each validation example cost, each predicted from the one before it alone.

    Returns nats float64[n] and counts int64[n]. Interpolated Kneser-Ney of order two, mixed below with one part in a
    thousand of a uniform guess, so that no token is impossible.
    Source: Chen and Goodman 1999.
    """
    vocabulary = 1 + int(max(train.token_ids.max(initial=0), valid.token_ids.max(initial=0)))
    before, after, _ = _pairs(train)
    keys, counts = np.unique(before * vocabulary + after, return_counts=True)
    heads, tails = np.divmod(keys, vocabulary)
    followed = np.bincount(heads, weights=counts, minlength=vocabulary)
    kinds = np.bincount(heads, minlength=vocabulary)
    continuation = np.bincount(tails, minlength=vocabulary).astype(np.float64)
    lower = 0.999 * continuation / max(1.0, continuation.sum()) + 0.001 / vocabulary
    asked_before, asked_after, owner = _pairs(valid)
    asked = asked_before * vocabulary + asked_after
    places = np.minimum(np.searchsorted(keys, asked), max(0, len(keys) - 1))
    seen = np.where(keys[places] == asked, counts[places], 0) if len(keys) else np.zeros(len(asked))
    total = followed[asked_before]
    known = total > 0
    scale = np.where(known, total, 1.0)
    high = np.maximum(seen - _DISCOUNT, 0) / scale
    rest = np.where(known, _DISCOUNT * kinds[asked_before] / scale, 1.0)
    costs = -np.log(high + rest * lower[asked_after])
    size = len(valid)
    return np.bincount(owner, weights=costs, minlength=size), np.bincount(owner, minlength=size)


def _pairs(examples: TokenizedExamples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each token to learn with the one before it, and the example that it is in."""
    ids = np.asarray(examples.token_ids, dtype=np.int64)
    owners = np.repeat(np.arange(len(examples)), examples.lengths)
    wanted = np.asarray(examples.learn).copy()
    wanted[np.asarray(examples.offsets[:-1])[examples.lengths > 0]] = False
    places = np.flatnonzero(wanted)
    return ids[places - 1], ids[places], owners[places]
