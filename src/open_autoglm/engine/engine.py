# SPDX-License-Identifier: Apache-2.0
"""The engine: requests in, one forward step of all of them at a time, text out."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from open_autoglm.engine.backends import Backend
from open_autoglm.engine.batch import build_batch
from open_autoglm.engine.block_pool import BlockPool
from open_autoglm.engine.detokenizer import Detokenizer, Vocabulary
from open_autoglm.engine.memory import plan_kv_blocks
from open_autoglm.engine.request import Completion, Delta, FinishReason, Request, TokenLogprob
from open_autoglm.engine.sampler import SamplerState, apply_masks, sample
from open_autoglm.engine.scheduler import Chunk, Scheduler, Sequence
from open_autoglm.errors import EngineError, OpenAutoGLMError, RequestError

MAX_BATCH_TOKENS: Final = 2048
MAX_SEQUENCES: Final = 64
BLOCK_SIZE: Final = 16


@dataclass(frozen=True)
class EngineStats:
    """Where the engine stands. Blocks are KV blocks; counts run from the engine's start."""

    num_waiting: int
    num_running: int
    free_blocks: int
    total_blocks: int
    num_steps: int
    num_preemptions: int


@dataclass(eq=False)
class _Answer:
    """A request in work."""

    request: Request
    sequence: Sequence
    sampler: SamplerState
    detokenizer: Detokenizer | None
    stop_token_ids: frozenset[int]
    max_tokens: int
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.token_ids[len(self.request.prompt_token_ids) :]

    @property
    def num_tokens(self) -> int:
        return len(self.sequence.token_ids) - len(self.request.prompt_token_ids)


class Engine:
    """Completes requests together, token by token. One thread at a time uses it; see `EngineThread` for servers.

    vocabulary: how tokens become text; without one, answers are token ids only.
    stop_token_ids: what ends an answer; the model's own when not given.
    kv_blocks: pages of the KV cache; set from the free memory when not given.
    Raises EngineError when the KV cache does not fit.
    """

    def __init__(
        self,
        backend: Backend,
        vocabulary: Vocabulary | None = None,
        *,
        stop_token_ids: Rows[int] | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_sequences: int = MAX_SEQUENCES,
        kv_blocks: int | None = None,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        if block_size < 1 or max_batch_tokens < 1 or max_sequences < 1:
            raise EngineError("block_size, max_batch_tokens and max_sequences must be at least 1")
        self._backend, self._vocabulary = backend, vocabulary
        self._stop_token_ids = frozenset(backend.stop_token_ids if stop_token_ids is None else stop_token_ids)
        if kv_blocks is None:
            kv_blocks = plan_kv_blocks(
                free_memory=backend.free_memory(),
                bytes_per_block=backend.bytes_per_block(block_size),
                block_size=block_size,
                max_sequences=max_sequences,
                max_positions=backend.max_positions,
            )
        self._pool = BlockPool(kv_blocks, block_size)
        self._scheduler = Scheduler(self._pool, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences)
        backend.allocate(kv_blocks, block_size)
        self._answers: dict[str, _Answer] = {}
        self._num_steps = 0

    @property
    def max_context(self) -> int:
        """The most tokens that a prompt and its answer may have: the model's limit, or the KV cache's if less."""
        return min(self._backend.max_positions, self._pool.num_blocks * self._pool.block_size)

    @property
    def has_unfinished(self) -> bool:
        """Whether any request is in work."""
        return bool(self._answers)

    @property
    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return EngineStats(
            num_waiting=self._scheduler.num_waiting,
            num_running=self._scheduler.num_running,
            free_blocks=self._pool.num_free,
            total_blocks=self._pool.num_blocks,
            num_steps=self._num_steps,
            num_preemptions=self._scheduler.num_preemptions,
        )

    def check_request(self, request: Request) -> int:
        """The most tokens that the answer will have.

        Raises RequestError if the prompt is empty, has ids that the model does not know, or does not fit.
        """
        prompt = request.prompt_token_ids
        if not prompt:
            raise RequestError("the prompt is empty", "messages")
        if min(prompt) < 0 or max(prompt) >= self._backend.vocab_size:
            raise RequestError(f"token ids must be from 0 to {self._backend.vocab_size - 1}", "prompt_token_ids")
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
        if request.id in self._answers:
            raise RequestError(f"the request id {request.id!r} is in use", "request_id")
        max_tokens = self.check_request(request)
        params = request.params
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._stop_token_ids)
        if params.stop and self._vocabulary is None:
            raise RequestError("stop strings need a tokenizer, which this model lacks", "stop")
        detokenizer = None
        if self._vocabulary is not None:
            detokenizer = Detokenizer(self._vocabulary, params.stop, request.drop_prefix)
        answer = _Answer(
            request=request,
            sequence=Sequence(request.id, list(request.prompt_token_ids), request.priority),
            sampler=SamplerState.start(params, request.prompt_token_ids),
            detokenizer=detokenizer,
            stop_token_ids=stops,
            max_tokens=max_tokens,
        )
        self._scheduler.add(answer.sequence)
        self._answers[request.id] = answer

    def abort(self, request_id: str) -> Delta | None:
        """Drop a request and free what it holds. Returns its last delta, or nothing if it is not in work."""
        answer = self._answers.get(request_id)
        return None if answer is None else self._end(answer, "abort")

    def step(self) -> list[Delta]:
        """Compute one step and return what it added. A step that fails ends its requests with an error each."""
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        self._num_steps += 1
        try:
            logits = self._backend.step(build_batch(chunks, self._pool.block_size))
        except Exception as error:  # noqa: BLE001 - whatever failed, the other requests go on
            reason = f"the engine's step failed ({type(error).__name__}: {error})"
            return [self._end(self._answers[chunk.sequence.id], "error", error=reason) for chunk in chunks]
        self._scheduler.advance(chunks)
        return self._sample(chunks, logits)

    def close(self) -> None:
        """Drop all requests and let the memory go."""
        for request_id in list(self._answers):
            self.abort(request_id)
        self._backend.close()

    def _sample(self, chunks: list[Chunk], logits: np.ndarray) -> list[Delta]:
        deltas: list[Delta] = []
        answers = [self._answers[chunk.sequence.id] for chunk in chunks if chunk.is_last]
        if self._vocabulary is not None:
            logits[:, self._vocabulary.size :] = -np.inf
        failed = self._apply_guides(answers, logits)
        for row, reason in failed.items():
            deltas.append(self._end(answers[row], "error", error=reason))
        rows = [row for row in range(len(answers)) if row not in failed]
        if failed:
            logits = logits[rows]
        chosen = sample(logits, [answers[row].sampler for row in rows])
        for row, (token_id, logprob) in zip(rows, chosen, strict=True):
            deltas.append(self._extend(answers[row], token_id, logprob))
        return deltas

    def _apply_guides(self, answers: list[_Answer], logits: np.ndarray) -> dict[int, str]:
        """Mask the logits of guided answers. Returns the rows whose guide failed, with the reason."""
        guided = [(row, answer.request.guide) for row, answer in enumerate(answers) if answer.request.guide]
        masks = np.zeros((len(guided), -(-logits.shape[1] // 32)), dtype=np.int32)
        failed: dict[int, str] = {}
        for index, (row, guide) in enumerate(guided):
            try:
                guide.fill_mask(masks, index)
            except OpenAutoGLMError as error:
                failed[row] = str(error)
        if guided:
            apply_masks(logits, masks, [row for row, _ in guided])
        return failed

    def _extend(self, answer: _Answer, token_id: int, logprob: TokenLogprob | None) -> Delta:
        if token_id < 0:
            return self._end(answer, "error", error="the model gave no number for any token that may come next")
        answer.sequence.token_ids.append(token_id)
        if logprob is not None:
            answer.logprobs.append(logprob)
        added = (token_id,)
        guide = answer.request.guide
        ends = token_id in answer.stop_token_ids or (guide is not None and token_id in self._stop_token_ids)
        if ends:
            return self._end(answer, "stop", token_ids=added, logprob=logprob)
        text = answer.detokenizer.push(token_id) if answer.detokenizer else ""
        answer.text.append(text)
        if answer.detokenizer is not None and answer.detokenizer.stopped:
            return self._end(answer, "stop", text, added, logprob)
        if guide is not None:
            try:
                guide.accept(token_id)
            except OpenAutoGLMError as error:
                return self._end(answer, "error", text, added, logprob, error=str(error))
            if guide.is_finished:
                return self._end(answer, "stop", text, added, logprob)
        if answer.num_tokens >= answer.max_tokens:
            return self._end(answer, "length", text, added, logprob)
        return Delta(answer.request.id, text, added, () if logprob is None else (logprob,))

    def _end(
        self,
        answer: _Answer,
        reason: FinishReason,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprob: TokenLogprob | None = None,
        *,
        error: str | None = None,
    ) -> Delta:
        self._scheduler.remove(answer.sequence)
        del self._answers[answer.request.id]
        rest = answer.detokenizer.finish() if answer.detokenizer else ""
        answer.text.append(rest)
        completion = Completion(
            text="".join(answer.text),
            token_ids=tuple(answer.token_ids),
            finish_reason=reason,
            prompt_tokens=len(answer.request.prompt_token_ids),
            logprobs=None if answer.request.params.logprobs is None else tuple(answer.logprobs),
            error=error,
        )
        logprobs = () if logprob is None else (logprob,)
        return Delta(answer.request.id, text + rest, token_ids, logprobs, completion)


def complete_all(engine: Engine, requests: Rows[Request]) -> list[Completion]:
    """Run an idle engine until all requests are answered. Returns the completions in the requests' order.

    Raises RequestError if any request is invalid; then none is left in the engine.
    """
    completions: dict[str, Completion] = {}
    try:
        for request in requests:
            engine.add_request(request)
        while engine.has_unfinished:
            for delta in engine.step():
                if delta.completion is not None:
                    completions[delta.request_id] = delta.completion
    except BaseException:
        for request in requests:
            engine.abort(request.id)
        raise
    return [completions[request.id] for request in requests]
