# SPDX-License-Identifier: Apache-2.0
"""`Answer`: one request in work, from its first token to its completion."""

from __future__ import annotations

import time

from open_autoglm.engine.detokenizer import Detokenizer, Vocabulary
from open_autoglm.engine.request import Completion, Delta, FinishReason, Request, TokenLogprob, WorkTimes
from open_autoglm.engine.sampler import SamplerState
from open_autoglm.engine.sequence import Sequence
from open_autoglm.errors import OpenAutoGLMError


class Answer:
    """What the engine keeps of a request.

    stop_token_ids: the model's own ends of an answer. max_tokens: of the answer, checked against the context.
    scheduled_at: when its first step began, by `time.monotonic`; the engine says it.
    """

    __slots__ = (
        "_detokenizer", "_ends", "_first_token_at", "_id", "_logprobs", "_longest", "_queued_at", "_stop_token_ids",
        "_text", "guide", "request", "sampler", "scheduled_at", "sequence",
    )  # fmt: skip

    def __init__(
        self, request: Request, vocabulary: Vocabulary | None, stop_token_ids: frozenset[int], max_tokens: int
    ) -> None:
        params, prompt = request.params, request.prompt_token_ids
        self.request, self._id = request, request.id
        self.guide = request.guide if request.make_guide is None else request.make_guide()
        self.sequence = Sequence(request.id, list(prompt), request.priority)
        self.sampler = SamplerState.start(params, prompt)
        self._detokenizer: Detokenizer | None = None
        if vocabulary is not None:
            self._detokenizer = Detokenizer(
                vocabulary,
                params.stop,
                request.drop_prefix,
                switches=request.stop_switches,
                stops_at_first=request.stops_at_first,
            )
        self._stop_token_ids = stop_token_ids
        self._ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else stop_token_ids)
        self._longest = len(prompt) + max_tokens
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._queued_at = time.monotonic()
        self.scheduled_at: float | None = None
        self._first_token_at: float | None = None

    def take(self, token_id: int, logprob: TokenLogprob | None) -> Delta:
        """Add the token that was chosen, -1 for none. The delta carries the completion if the answer ends with it."""
        if token_id < 0:
            return self.end("error", error="the model gave no number for any token that may come next")
        tokens, guide = self.sequence.token_ids, self.guide
        if guide is not None and token_id not in self._stop_token_ids:
            try:
                fitting = guide.fit(token_id, self._longest - len(tokens) - 1)
            except OpenAutoGLMError as error:
                return self.end("error", error=str(error))
            if fitting != token_id:  # the only one that the guide leaves, so its probability is one
                token_id, logprob = fitting, None if logprob is None else TokenLogprob(fitting, 0.0)
        tokens.append(token_id)
        if self._first_token_at is None:
            self._first_token_at = time.monotonic()
        added, logprobs = (token_id,), ()
        if logprob is not None:
            self._logprobs.append(logprob)
            logprobs = (logprob,)
        if token_id in self._ends or (guide is not None and token_id in self._stop_token_ids):
            return self.end("stop", "", added, logprobs)
        text = ""
        if self._detokenizer is not None:
            text = self._detokenizer.push(token_id)
            if text:
                self._text.append(text)
            if self._detokenizer.stopped:
                return self.end("stop", text, added, logprobs)
        if guide is not None:
            try:
                guide.accept(token_id)
            except OpenAutoGLMError as error:
                return self.end("error", text, added, logprobs, error=str(error))
            if guide.is_finished:
                return self.end("length" if guide.is_shortened else "stop", text, added, logprobs)
        if len(tokens) >= self._longest:
            return self.end("length", text, added, logprobs)
        return Delta(self._id, text, added, logprobs)

    def end(
        self,
        reason: FinishReason,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        *,
        error: str | None = None,
    ) -> Delta:
        """The last delta, which ends with the text that was held back. text, token_ids, logprobs: what a step added."""
        rest = self._detokenizer.finish() if self._detokenizer else ""
        request = self.request
        completion = Completion(
            text="".join(self._text) + rest,
            token_ids=tuple(self.sequence.token_ids[len(request.prompt_token_ids) :]),
            finish_reason=reason,
            prompt_tokens=len(request.prompt_token_ids),
            logprobs=None if request.params.logprobs is None else tuple(self._logprobs),
            error=error,
            cached_tokens=self.sequence.num_cached or 0,
            times=self._times(),
        )
        return Delta(request.id, text + rest, token_ids, logprobs, completion)

    def _times(self) -> WorkTimes | None:
        if self.scheduled_at is None or self._first_token_at is None:
            return None
        return WorkTimes(self._queued_at, self.scheduled_at, self._first_token_at, time.monotonic())
