# SPDX-License-Identifier: Apache-2.0
"""From logits to tokens, in NumPy: guide masks, penalties, temperature, top-k, top-p, min-p, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from open_autoglm.engine.request import SamplingParams, TokenLogprob


@dataclass
class SamplerState:
    """What sampling remembers of one request: its own random stream, and the tokens for penalties.

    prompt: the prompt's distinct tokens (for the repetition penalty). counts: how often the answer has each token.
    """

    params: SamplingParams
    generator: np.random.Generator
    prompt: np.ndarray
    counts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def start(cls, params: SamplingParams, prompt_token_ids: Sequence[int]) -> SamplerState:
        """The state before the first token."""
        wants_prompt = params.repetition_penalty != 1.0
        prompt = np.unique(np.asarray(prompt_token_ids if wants_prompt else (), dtype=np.int64))
        seed = None if params.seed is None else params.seed % 2**64
        return cls(params, np.random.default_rng(seed), prompt)

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the next token's chances."""
        params = self.params
        return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0)


def apply_masks(logits: np.ndarray, masks: np.ndarray, rows: Sequence[int]) -> None:
    """Forbid tokens in place. logits: float32[n, vocab_size]; masks: int32[len(rows), words], bit 1 = allowed."""
    allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little").astype(bool)
    width = min(allowed.shape[1], logits.shape[1])
    for row, mask in zip(rows, allowed, strict=True):
        logits[row, :width][~mask[:width]] = -np.inf
        logits[row, width:] = -np.inf


def sample(logits: np.ndarray, states: Sequence[SamplerState]) -> list[tuple[int, TokenLogprob | None]]:
    """Choose one token per row and record it in its state.

    logits: float32[n, vocab_size], masked already; may be overwritten. A row with no finite logit yields token -1.
    Returns each token, with its log-probability where the request asked for it.
    """
    greedy = logits.argmax(axis=1)
    chosen: list[tuple[int, TokenLogprob | None]] = []
    for row, state in enumerate(states):
        params = state.params
        if not np.isfinite(logits[row, greedy[row]]):
            chosen.append((-1, None))
            continue
        changed = logits[row]
        if state.has_penalties:
            changed = _penalised(changed, state)
        if params.temperature == 0:
            token_id = int(changed.argmax()) if state.has_penalties else int(greedy[row])
        else:
            token_id = _draw(changed, params, state.generator)
        logprob = None if params.logprobs is None else _logprob(logits[row], token_id, params.logprobs)
        state.counts[token_id] = state.counts.get(token_id, 0) + 1
        chosen.append((token_id, logprob))
    return chosen


def _penalised(logits: np.ndarray, state: SamplerState) -> np.ndarray:
    """Repetition over prompt and answer (Keskar et al. 2019); presence and frequency over the answer (OpenAI)."""
    params, changed = state.params, logits.copy()
    answered = np.fromiter(state.counts, dtype=np.int64, count=len(state.counts))
    if params.repetition_penalty != 1.0:
        seen = np.union1d(state.prompt, answered)
        seen = seen[seen < len(changed)]
        values = changed[seen]
        changed[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    counts = np.fromiter(state.counts.values(), dtype=np.float32, count=len(state.counts))
    changed[answered] -= params.frequency_penalty * counts + params.presence_penalty
    return changed


def _draw(logits: np.ndarray, params: SamplingParams, generator: np.random.Generator) -> int:
    """One token at random, by inversion: one uniform number per token keeps the stream aligned."""
    scaled = logits.astype(np.float64)
    scaled = (scaled - scaled.max()) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    if params.top_k > 0:
        order = order[: params.top_k]
    weights = np.exp(scaled[order])
    weights /= weights.sum()
    if params.top_p < 1.0:
        before = np.cumsum(weights) - weights
        keep = before < params.top_p
        keep[0] = True
        weights, order = weights[keep], order[keep]
    if params.min_p > 0.0:
        keep = weights >= params.min_p * weights[0]
        weights, order = weights[keep], order[keep]
    cumulative = np.cumsum(weights)
    place = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
    return int(order[min(place, len(order) - 1)])


def _logprob(logits: np.ndarray, token_id: int, count: int) -> TokenLogprob:
    shifted = logits.astype(np.float64) - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    count = min(count, len(logprobs))
    best: list[tuple[int, float]] = []
    if count:
        candidates = np.argpartition(-logprobs, count - 1)[:count]
        candidates = candidates[np.lexsort((candidates, -logprobs[candidates]))]
        best = [(int(item), float(logprobs[item])) for item in candidates if np.isfinite(logprobs[item])]
    return TokenLogprob(token_id, float(logprobs[token_id]), tuple(best))
