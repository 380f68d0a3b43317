# SPDX-License-Identifier: Apache-2.0
"""Which tokens of which sequences the next step computes: continuous batching over paged memory.

Decisions only; no tensors, no clock, no threads. Source: Yu et al. 2022 (Orca), Kwon et al. 2023 (PagedAttention),
Agrawal et al. 2023 (Sarathi, chunked prefill).
"""

from __future__ import annotations

import bisect
from typing import Final, NamedTuple

from open_autoglm.engine.block_pool import BlockPool
from open_autoglm.engine.sequence import Sequence
from open_autoglm.errors import EngineError

PRIORITY_SPAN: Final = 1024
"""Requests that one level of priority is worth."""


class Chunk(NamedTuple):
    """A stretch of a sequence to compute: `length` tokens from `start`.

    is_last: nothing of the sequence is left after it; its last token gets logits, unless the sequence is computed for
    something else.
    """

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
    up its blocks and is computed again later, but for what is still known of it. A waiting sequence that begins as
    one in prefill does is passed over until it can share the blocks that are being computed.

    Of a tree of continuations a step computes at most so many tokens that logits stay within `max_tree_rows` rows.

    A level of priority counts as having come `priority_span` requests earlier. So at most `priority_span` later
    requests are admitted before a given one for each level that they are above it, whatever keeps coming; the first
    in rank is never preempted; hence every sequence finishes.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_batch_tokens: int,
        max_sequences: int,
        max_tree_rows: int = 1024,
        priority_span: int = PRIORITY_SPAN,
    ) -> None:
        if max_batch_tokens < 1 or max_sequences < 1:
            raise EngineError("max_batch_tokens and max_sequences must be at least 1")
        self._pool = pool
        self._max_batch_tokens, self._max_sequences = max_batch_tokens, max_sequences
        self._priority_span = priority_span
        self._max_tree_rows = self._tree_rows_left = max_tree_rows
        self._waiting: list[Sequence] = []  # both in the order of rank
        self._running: list[Sequence] = []
        self._arrivals = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.admitted: list[Sequence] = []

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
        sequence.rank = (self._arrivals + sequence.priority * self._priority_span, self._arrivals)
        self._arrivals += 1
        bisect.insort(self._waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or aborted, and free what it holds."""
        self._release(sequence)
        if not _drop(self._running, sequence):
            _drop(self._waiting, sequence)

    def schedule(self) -> list[Chunk]:
        """Decide the next step: at most `max_batch_tokens` tokens of at most `max_sequences` sequences.

        The caller computes all chunks, then calls `advance`. Returns nothing only when there is nothing to do.
        `admitted` then holds the sequences that were taken in for the first time.
        """
        if self.admitted:
            self.admitted = []
        chunks: list[Chunk] = []
        preempted = self._plan_decodes(chunks)
        budget = self._max_batch_tokens - len(chunks)
        self._tree_rows_left = self._max_tree_rows
        for sequence in self._running:
            if not budget:
                return chunks
            if sequence.num_pending > 1:
                budget -= self._plan(chunks, sequence, budget)
        if budget and not preempted and self._waiting:
            self._admit(chunks, budget)
        return chunks

    def advance(self, chunks: list[Chunk]) -> None:
        """Record that the chunks have been computed, and make their full blocks known."""
        shares, size = self._pool.shares_prefixes, self._pool.block_size
        for sequence, start, length, _ in chunks:
            sequence.num_computed = end = start + length
            if shares and end - sequence.num_published * size >= size:
                self._publish(sequence)

    def _plan_decodes(self, chunks: list[Chunk]) -> bool:
        """Plan the running sequences with one token left. Returns whether one had to give up its blocks for that."""
        size, budget, num_before = self._pool.block_size, self._max_batch_tokens, self.num_preemptions
        for sequence in tuple(self._running):
            length, start, num_blocks = len(sequence.token_ids), sequence.num_computed, len(sequence.blocks)
            if length - start != 1 or not num_blocks:  # the latter: preempted a moment ago
                continue
            if len(chunks) == budget:
                break
            if length <= num_blocks * size or self._grow(sequence):
                chunks.append(Chunk(sequence, start, 1, True))
        return self.num_preemptions > num_before

    def _grow(self, sequence: Sequence) -> bool:
        """Take one more block, from running sequences of lower rank if need be, none of which is planned yet.

        Returns false when the sequence itself was the last and had to go.
        """
        while not self._pool.num_free:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.blocks.extend(self._pool.allocate(1))
        return True

    def _plan(self, chunks: list[Chunk], sequence: Sequence, budget: int) -> int:
        pending = sequence.num_pending
        length = min(pending, budget)
        if sequence.tree is not None:
            before = max(0, sequence.num_reusable - sequence.num_computed)  # tokens without logits
            length = min(length, before + self._tree_rows_left)
            self._tree_rows_left -= max(0, length - before)
        if length:
            chunks.append(Chunk(sequence, sequence.num_computed, length, length == pending))
        return length

    def _admit(self, chunks: list[Chunk], budget: int) -> None:
        size, place = self._pool.block_size, 0
        while budget and len(self._running) < self._max_sequences and place < len(self._waiting):
            sequence = self._waiting[place]
            length = len(sequence.token_ids)
            contents = sequence.block_contents(size) if self._pool.shares_prefixes else []
            prefix = self._pool.find_prefix(contents[: sequence.num_reusable // size])
            if place < self._max_sequences and self._is_being_computed(sequence, len(prefix)):
                place += 1
                continue
            needed = self._pool.blocks_for(length) - len(prefix)
            if needed > self._pool.num_takeable_without(prefix):
                return
            self._pool.share(prefix)
            sequence.blocks = [*prefix, *self._pool.allocate(needed)]
            sequence.num_published = len(prefix)
            sequence.num_computed = len(prefix) * size
            if sequence.num_cached is None:
                sequence.num_cached = sequence.num_computed
                self.admitted.append(sequence)
            self.num_cached_tokens += sequence.num_computed
            del self._waiting[place]
            bisect.insort(self._running, sequence, key=_rank)
            budget -= self._plan(chunks, sequence, budget)

    def _is_being_computed(self, sequence: Sequence, num_known: int) -> bool:
        """Whether a running sequence is about to compute the first block that `sequence` cannot share yet."""
        end = (num_known + 1) * self._pool.block_size
        if not self._pool.shares_prefixes or end > sequence.num_reusable:  # nothing that could be shared
            return False
        beginning = sequence.token_ids[:end]
        return any(
            other.num_computed < end <= other.num_shareable and other.token_ids[:end] == beginning
            for other in self._running
        )

    def _publish(self, sequence: Sequence) -> None:
        size, blocks = self._pool.block_size, sequence.blocks
        contents, end = sequence.block_contents(size), min(sequence.num_computed, sequence.num_shareable) // size
        for index in range(sequence.num_published, end):
            known = self._pool.publish(blocks[index], blocks[index - 1] if index else None, contents[index])
            if known != blocks[index]:
                blocks = sequence.blocks = [*blocks[:index], known, *blocks[index + 1 :]]
        sequence.num_published = end

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        _drop(self._running, sequence)
        bisect.insort(self._waiting, sequence, key=_rank)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_published = 0


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank


def _drop(row: list[Sequence], sequence: Sequence) -> bool:
    """Take a sequence out of a row in the order of rank. Returns false if it is not there."""
    place = bisect.bisect_left(row, sequence.rank, key=_rank)
    if place < len(row) and row[place] is sequence:
        del row[place]
        return True
    return False
