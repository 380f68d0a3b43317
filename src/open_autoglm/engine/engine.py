# SPDX-License-Identifier: Apache-2.0
"""The engine: requests in, one forward step of all of them at a time, text out."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Final, get_args

import numpy as np

from open_autoglm.engine.answer import Answer
from open_autoglm.engine.backends import Backend
from open_autoglm.engine.batch import BatchBuilder
from open_autoglm.engine.block_pool import BlockPool
from open_autoglm.engine.detokenizer import Vocabulary
from open_autoglm.engine.guide_masks import GuideMasks, StepMasks
from open_autoglm.engine.measurement import MeasuredStep, Measurement
from open_autoglm.engine.memory import plan_batch_tokens, plan_kv_blocks, plan_sequences, plan_tree_rows
from open_autoglm.engine.request import Completion, Delta, FinishReason, Request
from open_autoglm.engine.sampler import sample
from open_autoglm.engine.scheduler import Chunk, Scheduler
from open_autoglm.engine.sequence import Pooling
from open_autoglm.engine.stats import EngineStats
from open_autoglm.engine.token_tree import TokenTree
from open_autoglm.errors import EngineError, RequestError

BLOCK_SIZE: Final = 16

Runner = Callable[[Rows[Request]], list[Completion]]
"""Answers requests by an engine that a thread runs, as `complete_all` does."""

_TREES_KEPT: Final = 8
_AHEAD: Final = 2


class Engine:
    """Completes requests together, token by token. One thread at a time uses it; see `EngineThread` for servers.

    While an `EngineThread` runs it, `complete_all` asks that thread, so that nobody takes the deltas of another.

    vocabulary: how tokens become text; without one, answers are token ids only.
    stop_token_ids: what ends an answer; the model's own when not given.
    kv_blocks: pages of the KV cache. max_batch_tokens, max_sequences: what one step computes at most. Each is set from
    the free memory when not given, that of the control group respected.
    enable_prefix_caching: keep what is computed of a prompt for others that begin alike, where the model allows it.
    Raises EngineError when the KV cache does not fit.
    """

    def __init__(
        self,
        backend: Backend,
        vocabulary: Vocabulary | None = None,
        *,
        stop_token_ids: Rows[int] | None = None,
        max_batch_tokens: int | None = None,
        max_sequences: int | None = None,
        kv_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
        enable_prefix_caching: bool = True,
    ) -> None:
        given = (block_size, max_batch_tokens, max_sequences, kv_blocks)
        if any(value is not None and value < 1 for value in given):
            raise EngineError("block_size, max_batch_tokens, max_sequences and kv_blocks must be at least 1")
        self._backend, self._vocabulary = backend, vocabulary
        self._stop_token_ids = frozenset(backend.stop_token_ids if stop_token_ids is None else stop_token_ids)
        if kv_blocks is None or max_sequences is None:
            free_memory = backend.free_memory()
            if max_sequences is None:
                max_sequences = plan_sequences(free_memory=free_memory, vocab_size=backend.vocab_size)
            if kv_blocks is None:
                kv_blocks = plan_kv_blocks(
                    free_memory=free_memory,
                    bytes_per_block=backend.bytes_per_block(block_size),
                    block_size=block_size,
                    max_sequences=max_sequences,
                    max_positions=backend.max_positions,
                )
        if max_batch_tokens is None:
            max_batch_tokens = plan_batch_tokens(kv_blocks=kv_blocks, block_size=block_size)
        shares = enable_prefix_caching and backend.position_independent_keys
        self._pool = BlockPool(kv_blocks, block_size, shares_prefixes=shares)
        self._scheduler = Scheduler(
            self._pool,
            max_batch_tokens=max_batch_tokens,
            max_sequences=max_sequences,
            max_tree_rows=plan_tree_rows(vocab_size=backend.vocab_size),
        )
        backend.allocate(kv_blocks, block_size)
        self._batches = BatchBuilder(block_size)
        self._masks = GuideMasks(backend.vocab_size)
        self._answers: dict[str, Answer] = {}
        self._measurements: dict[str, Measurement] = {}
        self._tree_of = functools.lru_cache(_TREES_KEPT)(TokenTree.of)  # a classifier scores the same labels each time
        self._most_ready = _AHEAD * max_sequences
        self._num_steps = 0
        self._num_scheduled = 0
        self._turn = threading.Lock()
        self._runner: Runner | None = None

    @property
    def backend(self) -> Backend:
        """What computes."""
        return self._backend

    @property
    def max_context(self) -> int:
        """The most tokens that a prompt and its answer may have: the model's limit, or the KV cache's if less."""
        return min(self._backend.max_positions, self._pool.num_blocks * self._pool.block_size)

    @property
    def most_ready(self) -> int:
        """So many requests are worth having in work or ready at a time, those of two steps: guides need memory."""
        return self._most_ready

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is in work."""
        return bool(self._answers or self._measurements)

    @property
    def num_steps(self) -> int:
        """How many steps were computed."""
        return self._num_steps

    @property
    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return EngineStats(
            num_waiting=self._scheduler.num_waiting,
            num_running=self._scheduler.num_running,
            free_blocks=self._pool.num_free,
            cached_blocks=self._pool.num_idle,
            total_blocks=self._pool.num_blocks,
            num_steps=self._num_steps,
            num_preemptions=self._scheduler.num_preemptions,
            num_cached_tokens=self._scheduler.num_cached_tokens,
            num_scheduled=self._num_scheduled,
        )

    def hand_over(self, runner: Runner | None) -> None:
        """From now on `complete_all` asks `runner`; steps the engine itself again for none. Waits while it does."""
        with self._turn:
            self._runner = runner

    def complete(self, requests: Rows[Request]) -> list[Completion]:
        """See `complete_all`."""
        with self._turn:
            runner = self._runner
            if runner is None:
                return self._complete(requests)
        return runner(requests)

    def check_request(self, request: Request) -> int:
        """The most tokens that the answer will have; 0 for a request that ends with numbers.

        Raises RequestError if the prompt is empty, has ids that the model does not know, or does not fit.
        """
        prompt = request.prompt_token_ids
        if not prompt:
            raise RequestError("the prompt is empty", "messages")
        if min(prompt) < 0 or max(prompt) >= self._backend.vocab_size:
            raise RequestError(f"token ids must be from 0 to {self._backend.vocab_size - 1}", "prompt_token_ids")
        if any(token_id >= self._backend.vocab_size for token_id in request.params.logit_bias or ()):
            raise RequestError(f"logit_bias takes token ids from 0 to {self._backend.vocab_size - 1}", "logit_bias")
        if request.params.stop and self._vocabulary is None:
            raise RequestError("stop strings need a tokenizer, which this model lacks", "stop")
        if request.is_measurement:
            self._check_measurement(request)
            return 0
        room = self.max_context - len(prompt)
        wanted = request.params.max_tokens
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and the context is {self.max_context}, "
                "which leaves no room for an answer; shorten the prompt",
                "messages",
            )
        if wanted is not None and wanted > room:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {wanted}, together more than the context of "
                f"{self.max_context}; ask for at most {room}",
                "max_tokens",
            )
        return room if wanted is None else wanted

    def add_request(self, request: Request) -> None:
        """Queue a request. Raises RequestError if it is invalid or its id is in use."""
        if request.id in self._answers or request.id in self._measurements:
            raise RequestError(f"the request id {request.id!r} is in use", "request_id")
        max_tokens = self.check_request(request)
        if request.is_measurement:
            tree = None if request.continuations is None else self._tree_of(request.continuations)
            size = self._backend.vocab_size if self._vocabulary is None else self._vocabulary.size
            measurement = Measurement(request, tree, size)
            self._scheduler.add(measurement.sequence)
            self._measurements[request.id] = measurement
            return
        answer = Answer(request, self._vocabulary, self._stop_token_ids, max_tokens)
        self._scheduler.add(answer.sequence)
        self._answers[request.id] = answer

    def abort(self, request_id: str) -> Delta | None:
        """Drop a request and free what it holds. Returns its last delta, or nothing if it is not in work."""
        work = self._answers.get(request_id) or self._measurements.get(request_id)
        return None if work is None else self._end(work, "abort")

    def step(self) -> list[Delta]:
        """Compute one step and return what it added. A step that fails ends its requests with an error each."""
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        self._num_steps += 1
        self._num_scheduled += len(chunks)
        if self._scheduler.admitted:
            self._note_begin()
        answers = [answer for chunk in chunks if chunk.is_last and (answer := self._answers.get(chunk.sequence.id))]
        masks = self._start_masks(answers)
        measured = None
        try:
            batch = self._batches.build(chunks)
            if self._measurements:
                measured = MeasuredStep.of(batch, chunks, self._backend.hidden_size)
                batch = measured.batch
            logits = self._backend.step(batch)
        except Exception as error:  # noqa: BLE001 - whatever failed, the other requests go on
            reason = f"the engine's step failed ({type(error).__name__}: {error})"
            if masks is not None:
                masks.wait()
            names = [chunk.sequence.id for chunk in chunks]
            works = [self._answers.get(name) or self._measurements[name] for name in names]
            return [self._end(work, "error", error=reason) for work in works]
        self._scheduler.advance(chunks)
        if measured is None:
            return self._choose(answers, logits, masks)
        deltas = self._measure(chunks, measured, logits)
        return deltas + self._choose(answers, logits[measured.answer_rows], masks) if answers else deltas

    def close(self) -> None:
        """Drop all requests and let the memory go."""
        for request_id in [*self._answers, *self._measurements]:
            self.abort(request_id)
        self._masks.close()
        self._backend.close()

    def _complete(self, requests: Rows[Request]) -> list[Completion]:
        completions: dict[str, Completion] = {}
        try:
            for request in requests:
                self.check_request(request)
            coming = iter(sorted(requests, key=lambda request: request.priority))
            while True:
                room = self._most_ready - len(self._answers) - len(self._measurements)
                for request in itertools.islice(coming, max(0, room)):
                    self.add_request(request)
                if not self.has_unfinished:
                    break
                for delta in self.step():
                    if delta.completion is not None:
                        completions[delta.request_id] = delta.completion
        except BaseException:
            for request in requests:
                self.abort(request.id)
            raise
        return [completions[request.id] for request in requests]

    def _note_begin(self) -> None:
        """Of the answers that the scheduler took in for the first time."""
        now = time.monotonic()
        for sequence in self._scheduler.admitted:
            if (answer := self._answers.get(sequence.id)) is not None:
                answer.scheduled_at = now

    def _start_masks(self, answers: list[Answer]) -> StepMasks | None:
        rows = [row for row, answer in enumerate(answers) if answer.guide is not None]
        if not rows:
            return None
        return self._masks.start(rows, [guide for row in rows if (guide := answers[row].guide) is not None])

    def _measure(self, chunks: list[Chunk], measured: MeasuredStep, logits: np.ndarray) -> list[Delta]:
        """Hand each measured sequence what the step found. Returns the deltas of those that are done."""
        deltas: list[Delta] = []
        for chunk in chunks:
            measurement = self._measurements.get(chunk.sequence.id)
            if measurement is None:
                continue
            measurement.take(chunk, measured.of_sequence(chunk.sequence, logits))
            if chunk.is_last:
                deltas.append(measurement.finish())
                self._forget(measurement)
        return deltas

    def _check_measurement(self, request: Request) -> None:
        """Raises RequestError for a request that ends with numbers and is invalid or does not fit."""
        length, continuations = len(request.prompt_token_ids), request.continuations
        if request.pooling is not None and request.pooling not in get_args(Pooling):
            raise RequestError(f"pooling must be mean or last, not {str(request.pooling)[:40]!r}", "pooling")
        if request.pooling is not None and continuations is not None:
            raise RequestError("a request has either pooling or continuations", "pooling")
        longest, extra = 0, 0
        if continuations is not None:
            if not continuations or not all(continuations):
                raise RequestError("continuations must be a list of lists of token ids, none empty", "continuations")
            size = self._backend.vocab_size
            if min(map(min, continuations)) < 0 or max(map(max, continuations)) >= size:
                raise RequestError(f"token ids must be from 0 to {size - 1}", "continuations")
            tree = self._tree_of(continuations)
            longest, extra = tree.depth, len(tree)
        room = self._pool.num_blocks * self._pool.block_size
        if length + longest > self._backend.max_positions or length + extra > room:
            also = f", and {extra} more to be scored," if extra else ""
            raise RequestError(
                f"the prompt has {length} tokens{also} and the context is {self.max_context}; shorten it", "messages"
            )

    def _choose(self, answers: list[Answer], logits: np.ndarray, masks: StepMasks | None) -> list[Delta]:
        """Choose a token per answer. logits: float32[len(answers), vocab_size], overwritten."""
        deltas: list[Delta] = []
        if self._vocabulary is not None and self._vocabulary.size < logits.shape[1]:
            logits[:, self._vocabulary.size :] = -np.inf
        failed = masks.apply(logits) if masks is not None else None
        if failed:
            deltas += [self._end(answers[row], "error", error=reason) for row, reason in failed.items()]
            rows = [row for row in range(len(answers)) if row not in failed]
            answers, logits = [answers[row] for row in rows], logits[rows]
        chosen = sample(logits, [answer.sampler for answer in answers])
        for answer, (token_id, logprob) in zip(answers, chosen, strict=True):
            delta = answer.take(token_id, logprob)
            if delta.completion is not None:
                self._forget(answer)
            deltas.append(delta)
        return deltas

    def _end(self, work: Answer | Measurement, reason: FinishReason, *, error: str | None = None) -> Delta:
        self._forget(work)
        return work.end(reason, error=error)

    def _forget(self, work: Answer | Measurement) -> None:
        self._scheduler.remove(work.sequence)
        if isinstance(work, Answer):
            del self._answers[work.request.id]
        else:
            del self._measurements[work.request.id]


def complete_all(engine: Engine, requests: Rows[Request]) -> list[Completion]:
    """Have all requests answered: by stepping an idle engine, or by the thread that runs it. Callers take turns.

    Returns the completions in the requests' order. Raises RequestError if any request is invalid; then none is left in
    the engine. Raises EngineError when the thread that runs the engine is stopping.
    """
    return engine.complete(requests)
