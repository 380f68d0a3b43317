# SPDX-License-Identifier: Apache-2.0
"""Words cut into other pieces than a BPE tokenizer cuts them into, so that a model also knows the pieces of its words.

Source: Provilkov et al. 2020 (BPE-Dropout, arXiv:1910.13267), who leave out merges at random while they build a word.
Here merges of finished tokens are undone at random, which needs no tokenizer of its own and no text. A word is cut in
the same way wherever it stands in an example: an answer that copies it still copies it piece by piece.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from open_autoglm.data.encoding import TokenizedExamples
from open_autoglm.data.tokenizer import spaced_twins

_MULTIPLIERS: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS: Final = (30, 27, 31)
_BITS: Final = 53


@dataclass(frozen=True)
class Merges:
    """What a tokenizer's tokens were merged from.

    left, right: int32[vocabulary], the two parts of a token; -1 for one that is whole. word: int64[vocabulary], the
    token without the space before it where that has parts, or the token itself: both are cut or neither is.
    """

    left: np.ndarray
    right: np.ndarray
    word: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Merges:
        """The merges of a BPE tokenizer; of another kind of tokenizer there are none."""
        size = tokenizer.get_vocab_size()
        left, right = (np.full(size, -1, dtype=np.int32) for _ in range(2))
        model = json.loads(tokenizer.to_str())["model"]
        known = model["vocab"] if isinstance(model.get("vocab"), dict) else {}
        for merge in model.get("merges") or ():
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            token = known.get(first + second)
            if token is not None and left[token] < 0 and first in known and second in known:
                left[token], right[token] = known[first], known[second]
        word = np.arange(size)
        for spaced, bare in spaced_twins(tokenizer):
            if right[spaced] == bare and left[bare] >= 0:
                word[spaced] = bare
        return cls(left, right, word)


def drop_merges(
    examples: TokenizedExamples, merges: Merges, share: float, *, seed: int, epoch: int, max_length: int
) -> TokenizedExamples:
    """The examples with each merge undone with probability `share`: a pure function of its arguments.

    Which tokens of an example are cut depends on the token and the example, not on the place. An example that would
    be longer than `max_length` tokens stays whole.
    """
    state = _mix(np.uint64(seed & 0xFFFFFFFF) << np.uint64(32) | np.uint64(epoch & 0xFFFFFFFF))
    cut = _cut(examples, merges, share, state, np.ones(len(examples), dtype=bool))
    fits = cut.lengths <= max_length
    return cut if fits.all() else _cut(examples, merges, share, state, fits)


def _cut(
    examples: TokenizedExamples, merges: Merges, share: float, state: np.ndarray, allowed: np.ndarray
) -> TokenizedExamples:
    """state: uint64[1], what chance begins with. allowed: bool[n], the examples that may be cut."""
    tokens, learn = np.asarray(examples.token_ids), np.asarray(examples.learn)
    owner = np.repeat(np.arange(len(examples)), examples.lengths)
    size = np.uint64(len(merges.word))
    while True:
        word = merges.word[tokens]
        drawn = _mix(state ^ (owner.astype(np.uint64) * size + word.astype(np.uint64)))
        chosen = (drawn >> np.uint64(64 - _BITS)) < np.uint64(share * 2**_BITS)
        chosen &= allowed[owner] & (merges.left[tokens] >= 0)
        if not chosen.any():
            break
        counts = 1 + chosen
        ends = np.cumsum(counts)
        first, second = tokens.copy(), merges.right[tokens[chosen]]
        first[chosen] = merges.left[tokens[chosen]]
        tokens, learn, owner = (np.repeat(values, counts) for values in (first, learn, owner))
        tokens[ends[chosen] - 1] = second
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(examples)))])
    return TokenizedExamples(tokens.astype(np.int32), learn, offsets.astype(np.int64), examples.shortened)


def _mix(values: np.ndarray | np.uint64) -> np.ndarray:
    """uint64, evenly spread. Source: the finaliser of Steele et al. 2014 (SplitMix64)."""
    mixed = np.atleast_1d(np.asarray(values, dtype=np.uint64))
    for shift, multiplier in zip(_SHIFTS[:2], _MULTIPLIERS, strict=True):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(multiplier)
    return mixed ^ (mixed >> np.uint64(_SHIFTS[2]))
