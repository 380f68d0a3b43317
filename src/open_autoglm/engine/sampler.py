# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens, in NumPy: bias, penalties, temperature, top-k, top-p, min-p, and log-probabilities.

A row of logits may have 150,000 columns, so nothing sorts a whole row: what cannot be chosen is cut off by its value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from open_autoglm.engine.request import SamplingParams, TokenLogprob

_NEGLIGIBLE: Final = 50.0
"""Natural logarithm of how much less likely than the best token a token must be to be left out of account."""

_LEAST_TEMPERATURE: Final = 1e-6
"""What lower temperatures count as; it takes the likeliest token too, and its inverse is a number."""

_LONG: Final = 16384
"""Numbers in a row from which on a sample of them says where the largest begin."""

_STRIDE: Final = 64


@dataclass
class SamplerState:
    """What sampling remembers of one request: its own random stream, and the tokens for penalties.

    prompt: the prompt's distinct tokens (for the repetition penalty). counts: how often the answer has each token;
    kept only when a penalty needs it. is_plain: the likeliest token, and nothing else, is wanted.
    """

    params: SamplingParams
    generator: np.random.Generator | None
    prompt: np.ndarray
    counts: dict[int, int] = field(default_factory=dict)
    bias: tuple[np.ndarray, np.ndarray] | None = None
    has_penalties: bool = False
    is_plain: bool = False

    @classmethod
    def start(cls, params: SamplingParams, prompt_token_ids: Sequence[int]) -> SamplerState:
        """The state before the first token."""
        wants_prompt = params.repetition_penalty != 1.0
        prompt = np.unique(np.asarray(prompt_token_ids, dtype=np.int64)) if wants_prompt else _NO_TOKENS
        seed = None if params.seed is None else params.seed % 2**64
        bias = None
        if params.logit_bias:
            bias = (
                np.fromiter(params.logit_bias, np.int64, len(params.logit_bias)),
                np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias)),
            )
        has_penalties = bool(params.presence_penalty or params.frequency_penalty or wants_prompt)
        return cls(
            params=params,
            generator=np.random.default_rng(seed) if params.temperature > 0 else None,
            prompt=prompt,
            bias=bias,
            has_penalties=has_penalties,
            is_plain=not (params.temperature or has_penalties or bias or params.logprobs is not None),
        )


def sample(logits: np.ndarray, states: Sequence[SamplerState]) -> list[tuple[int, TokenLogprob | None]]:
    """Choose one token per row and record it in its state.

    logits: float32[n, vocab_size], masked already; may be overwritten. A row with no finite logit yields token -1.
    Returns each token, with its log-probability where the request asked for it.
    """
    if not len(states):
        return []
    likeliest = logits.argmax(axis=1)
    finite = np.isfinite(logits[np.arange(len(likeliest)), likeliest])
    if not finite.all():
        likeliest[~finite] = -1
    if all([state.is_plain for state in states]):  # noqa: C419 - a list is twice as fast here
        return [(token_id, None) for token_id in likeliest.tolist()]
    chosen: list[tuple[int, TokenLogprob | None]] = []
    for row, (token_id, state) in enumerate(zip(likeliest.tolist(), states, strict=True)):
        if state.is_plain or token_id < 0:
            chosen.append((token_id, None))
        else:
            chosen.append(_choose(logits[row], token_id, state))
    return chosen


def _choose(logits: np.ndarray, likeliest: int, state: SamplerState) -> tuple[int, TokenLogprob | None]:
    """One token of a row that is float32[vocab_size]; the row is changed."""
    params, unchanged = state.params, logits
    if state.has_penalties or state.bias is not None:
        if params.logprobs is not None:
            unchanged = logits.copy()
        _adjust(logits, state)
        likeliest = int(logits.argmax())
    token_id = likeliest if state.generator is None else _draw(logits, likeliest, params, state.generator)
    if state.has_penalties:
        state.counts[token_id] = state.counts.get(token_id, 0) + 1
    return token_id, None if params.logprobs is None else _logprob(unchanged, token_id, params.logprobs)


def _adjust(logits: np.ndarray, state: SamplerState) -> None:
    """Bias (OpenAI); repetition over prompt and answer (Keskar et al. 2019); presence and frequency (OpenAI)."""
    params = state.params
    if state.bias is not None:
        token_ids, values = state.bias
        logits[token_ids] += values
    if not state.has_penalties:
        return
    answered = np.fromiter(state.counts, np.int64, len(state.counts))
    if params.repetition_penalty != 1.0:
        seen = np.union1d(state.prompt, answered)
        seen = seen[seen < len(logits)]
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    counts = np.fromiter(state.counts.values(), np.float32, len(state.counts))
    logits[answered] -= params.frequency_penalty * counts + params.presence_penalty


def _draw(logits: np.ndarray, likeliest: int, params: SamplingParams, generator: np.random.Generator) -> int:
    """One token at random, by inversion: one uniform number per token keeps the stream aligned."""
    top, temperature = float(logits[likeliest]), max(params.temperature, _LEAST_TEMPERATURE)
    floor = top - temperature * _NEGLIGIBLE
    if params.min_p > 0.0:
        floor = max(floor, top + temperature * math.log(params.min_p))
    if 0 < params.top_k < len(logits):
        token_ids = _largest(logits, params.top_k)
        weights = np.exp((logits[token_ids].astype(np.float64) - top) / temperature)
        if params.top_p < 1.0:
            count = _nucleus_size(weights, params.top_p * float(weights.sum()))
            token_ids, weights = token_ids[:count], weights[:count]
    elif params.top_p < 1.0:
        all_weights = np.exp((logits - top) * np.float32(1 / temperature))
        mass = float(all_weights.sum())
        # All tokens below this weight have together less than what top-p leaves out, so they are not in it.
        least = np.float32((1 - params.top_p) * mass / len(logits))
        candidates = np.flatnonzero(all_weights >= min(least, np.float32(1.0)))
        token_ids, weights = _nucleus_of(candidates, all_weights[candidates], params.top_p * mass)
    else:
        token_ids = np.flatnonzero(logits >= floor)
        weights = np.exp((logits[token_ids].astype(np.float64) - top) / temperature)
    if params.min_p > 0.0:
        keep = logits[token_ids] >= floor
        token_ids, weights = token_ids[keep], weights[keep]
    cumulative = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
    return int(token_ids[min(place, len(token_ids) - 1)])


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` largest numbers that are not minus infinity, largest first, earlier before later ones.

    values: float32[n], none of them not a number.
    """
    if len(values) <= count:
        places = np.flatnonzero(values > -np.inf)
    else:
        floor = _floor(values, count)
        places = np.flatnonzero(values >= floor if floor > -np.inf else values > floor)
    return places[np.argsort(-values[places], kind="stable")[:count]]


def _floor(values: np.ndarray, count: int) -> np.float32:
    """A number that at least `count` of the values reach, and not many more."""
    if len(values) >= _LONG:
        sample = values[::_STRIDE]
        rank = 8 + 2 * count // _STRIDE
        if rank < len(sample):
            floor = np.partition(sample, -rank)[-rank]
            if np.count_nonzero(values >= floor) >= count:
                return floor
    return np.partition(values, -count)[-count]


def _nucleus_of(token_ids: np.ndarray, weights: np.ndarray, wanted: float) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest of some tokens that have `wanted` weight together, earlier before equal ones; in their own order.

    Only the weights are sorted, which is much faster than to sort tokens by them.
    """
    falling = np.sort(weights)[::-1]
    count = _nucleus_size(falling, wanted)
    keep = np.flatnonzero(weights >= falling[count - 1])
    if len(keep) > count:
        equal = np.flatnonzero(weights[keep] == falling[count - 1])
        keep = np.delete(keep, equal[count - len(keep) :])
    return token_ids[keep], weights[keep]


def _nucleus_size(falling: np.ndarray, wanted: float) -> int:
    """How many of the weights, largest first, have `wanted` weight together; one at least."""
    before = np.cumsum(falling, dtype=np.float64) - falling
    return max(1, int(np.searchsorted(before, wanted, side="left")))


def _logprob(logits: np.ndarray, token_id: int, count: int) -> TokenLogprob:
    top = logits.max()
    normalizer = float(top) + math.log(float(np.exp(logits - top).sum()))
    best = _largest(logits, count) if count else _NO_TOKENS
    found = tuple((int(item), float(logits[item]) - normalizer) for item in best)
    return TokenLogprob(token_id, float(logits[token_id]) - normalizer, found)


_NO_TOKENS: Final = np.empty(0, dtype=np.int64)
