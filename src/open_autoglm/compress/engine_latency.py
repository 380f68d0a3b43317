# SPDX-License-Identifier: Apache-2.0
"""How fast the engine is with some weights: a short prompt, and one token after the other."""

from __future__ import annotations

import statistics
import time
from typing import Final

import numpy as np

from open_autoglm.compress.gate import Latency
from open_autoglm.engine.backends import Backend
from open_autoglm.engine.batch import Batch

_PROMPT: Final = 64
_TOKENS: Final = 24
_ROUNDS: Final = 3
_BLOCK: Final = 16


def measure_latency(backend: Backend) -> Latency:
    """Time a backend; its KV cache is allocated here. Medians, so that one interruption does not count."""
    prompt = min(_PROMPT, backend.max_positions // 2)
    steps = min(_TOKENS, backend.max_positions - prompt)
    blocks = -(-(prompt + steps) // _BLOCK)
    backend.allocate(blocks, _BLOCK)
    generator = np.random.default_rng(0)
    prompts: list[float] = []
    tokens: list[float] = []
    for _ in range(_ROUNDS):
        ids = generator.integers(0, backend.vocab_size, prompt + steps)
        prompts.append(_timed(backend, ids[:prompt], 0, blocks))
        tokens += [_timed(backend, ids[prompt + i : prompt + i + 1], prompt + i, blocks) for i in range(steps)]
    return Latency(round(prompt / statistics.median(prompts), 1), round(1000 * statistics.median(tokens), 3))


def _timed(backend: Backend, ids: np.ndarray, start: int, blocks: int) -> float:
    positions = np.arange(start, start + len(ids))
    context = np.array([start + len(ids)])
    batch = Batch(
        token_ids=ids.astype(np.int64),
        positions=positions,
        slot_mapping=positions,
        offsets=np.array([0, len(ids)]),
        context_lengths=context,
        sequence_lengths=context,
        block_tables=np.arange(blocks)[None, : -(-int(context[0]) // _BLOCK)],
        output_indices=np.array([len(ids) - 1]),
        block_size=_BLOCK,
    )
    began = time.perf_counter()
    backend.step(batch)
    return time.perf_counter() - began
