# SPDX-License-Identifier: Apache-2.0
"""Which tokens of which sequences the next step computes: continuous batching over paged memory.

Decisions only; no tensors, no clock, no threads. Source: Yu et al. 2022 (Orca), Kwon et al. 2023 (PagedAttention),
Agrawal et al. 2023 (Sarathi, chunked prefill).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

from open_autoglm.engine.block_pool import BlockPool
from open_autoglm.errors import EngineError


@dataclass(eq=False)
class Sequence:
    """The tokens of one request, how far they are computed, and the blocks that hold their keys and values.

    token_ids: prompt and answer so far. num_computed: how many of them are in the KV cache.
    """

    id: str
    token_ids: list[int]
    priority: int = 0
    arrival: int = 0
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, int]:
        """The place in the queue: lower priority number first, then first come first served."""
        return (self.priority, self.arrival)

    @property
    def num_pending(self) -> int:
        """Tokens known but not computed."""
        return len(self.token_ids) - self.num_computed


@dataclass(frozen=True)
class Chunk:
    """A stretch of a sequence to compute: `length` tokens from `start`. is_last: its last token gets logits."""

    sequence: Sequence
    start: int
    length: int
    is_last: bool


class Scheduler:
    """Sequences waiting and running.

    Each step: running sequences first, those with a single token before those in prefill, so that a long prompt
    never delays the others' next token; then waiting ones in rank order while tokens, places and blocks last. The
    first that does not fit ends admission, so that a large request is not passed over for ever. A sequence holds
    blocks for its whole prompt from admission on; when one cannot grow, the running sequence of the last rank gives
    up its blocks and is computed again later. The first in rank is never preempted, hence every sequence finishes.
    """

    def __init__(self, pool: BlockPool, *, max_batch_tokens: int, max_sequences: int) -> None:
        if max_batch_tokens < 1 or max_sequences < 1:
            raise EngineError("max_batch_tokens and max_sequences must be at least 1")
        self._pool = pool
        self._max_batch_tokens, self._max_sequences = max_batch_tokens, max_sequences
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._arrivals = 0
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that hold no memory yet, or lost it."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold memory."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Its whole life must fit in the pool; the engine has checked that."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        bisect.insort(self._waiting, sequence, key=lambda item: item.rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or aborted, and free what it holds."""
        self._release(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def schedule(self) -> list[Chunk]:
        """Decide the next step: at most `max_batch_tokens` tokens of at most `max_sequences` sequences.

        The caller computes all chunks, then calls `advance`. Returns nothing only when there is nothing to do.
        """
        planned: dict[Sequence, int] = {}
        budget = self._max_batch_tokens
        preempted = False
        running = sorted(self._running, key=lambda item: item.rank)
        for sequence in [item for item in running if item.num_pending == 1]:
            if budget == 0:
                break
            if not sequence.blocks:  # preempted a moment ago, by one before it
                continue
            while not self._grow(sequence):
                victim = max(self._running, key=lambda item: item.rank)
                self._preempt(victim)
                preempted = True
                budget += planned.pop(victim, 0)
                if victim is sequence:
                    break
            else:
                planned[sequence] = 1
                budget -= 1
        for sequence in running:
            if budget and sequence.blocks and sequence.num_pending > 1:
                planned[sequence] = min(sequence.num_pending, budget)
                budget -= planned[sequence]
        while budget and not preempted and self._waiting and len(self._running) < self._max_sequences:
            sequence = self._waiting[0]
            needed = self._pool.blocks_for(len(sequence.token_ids))
            if needed > self._pool.num_free:
                break
            sequence.blocks = self._pool.allocate(needed)
            self._running.append(self._waiting.pop(0))
            planned[sequence] = min(sequence.num_pending, budget)
            budget -= planned[sequence]
        return [
            Chunk(sequence, sequence.num_computed, length, length == sequence.num_pending)
            for sequence, length in planned.items()
        ]

    def advance(self, chunks: list[Chunk]) -> None:
        """Record that the chunks have been computed."""
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.start + chunk.length

    def _grow(self, sequence: Sequence) -> bool:
        missing = self._pool.blocks_for(len(sequence.token_ids)) - len(sequence.blocks)
        if missing > self._pool.num_free:
            return False
        sequence.blocks.extend(self._pool.allocate(missing))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self._running.remove(sequence)
        bisect.insort(self._waiting, sequence, key=lambda item: item.rank)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
