# SPDX-License-Identifier: Apache-2.0
"""`RequestRecord`: what is known of one request, filled while it is answered and read when it has ended."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.types import Scope

from open_autoglm.engine.orders import ChatOrder, Order, Piece, Times, TokenScore, Usage
from open_autoglm.serve.watching.answer_form import AnswerForm

MAX_KEPT_TEXT: Final = 64 * 1024
"""Characters of a choice that are kept, to be checked or logged."""

_STATE: Final = "request_record"
_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KINDS: Final = {
    400: "invalid_request",
    401: "authentication",
    403: "permission",
    404: "not_found",
    408: "timeout",
    413: "too_large",
    414: "too_large",
    429: "rate_limit",
    431: "too_large",
    499: "client_gone",
    503: "unavailable",
    504: "timeout",
}
ERROR_KINDS: Final = tuple(dict.fromkeys((*_KINDS.values(), "internal")))
"""What may have been wrong with a request, for logs and metrics."""


def error_kind(status: int) -> str | None:
    """What was wrong with a request that got this status; nothing for one that succeeded."""
    if status < 400:
        return None
    return _KINDS.get(status, "internal" if status >= 500 else "invalid_request")


@dataclass(slots=True)
class ChoiceRecord:
    """One answer of a request.

    text, arguments: of the content, and of each call of a tool, where they are kept. is_cut: there was more than is
    kept. num_scored, sum_logprob: of its tokens, where they were scored.
    """

    finish_reason: str | None = None
    usage: Usage | None = None
    times: Times | None = None
    num_scored: int = 0
    sum_logprob: float = 0.0
    text: list[str] = field(default_factory=list[str])
    arguments: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    size: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether the text is not all of it."""
        return self.size > MAX_KEPT_TEXT

    def score(self, scores: Sequence[TokenScore]) -> None:
        """Count the probabilities of tokens."""
        self.num_scored += len(scores)
        self.sum_logprob += sum(item.logprob for item in scores)

    def keep(self, piece: Piece) -> None:
        """Keep what a piece says, while there is room."""
        self.size += len(piece.text) + sum(len(call.arguments) for call in piece.calls)
        if self.is_cut:
            return
        if piece.text:
            self.text.append(piece.text)
        for call in piece.calls:
            self.arguments.setdefault(call.index, []).append(call.arguments)


class RequestRecord:
    """One request, over whatever protocol. Times are seconds of `time.monotonic`.

    route: a template, never a path as it was sent. request_id: comes back with the answer; the client's own if it is
    sane, else `own_id`. trace_parent, trace_state:
    W3C's headers as they came. operation: as OpenTelemetry names it, once a model is asked. keeps_content: all that
    is said is wanted. scored: whether token probabilities are computed for us.
    status: as HTTP has it, also for other protocols. error: its kind, if that is not to be told from the status.
    answers, tokens: those that came to their end, by number, and what all took; known once the request has ended.
    """

    __slots__ = (
        "aborted", "answers", "began", "began_ns", "cache", "choices", "digest", "ended", "error", "error_message",
        "first_piece", "form", "is_stream", "keeps_content", "key_id", "method", "model", "num_choices", "num_tokens",
        "operation", "order", "prompt_tokens", "protocol", "request_id", "route", "scored", "status", "tokens",
        "trace_parent", "trace_state",
    )  # fmt: skip

    def __init__(
        self,
        *,
        protocol: str = "http",
        method: str = "",
        route: str = "",
        headers: Iterable[tuple[bytes, bytes]] = (),
        own_id: str = "",
        keeps_content: bool = False,
        scored: bool = False,
    ) -> None:
        self.protocol, self.method, self.route = protocol, method, route
        self.keeps_content, self.scored = keeps_content, scored
        self.began, self.began_ns = time.monotonic(), time.time_ns()
        self.request_id = own_id
        self.trace_parent: str | None = None
        self.trace_state: str | None = None
        for name, value in headers:
            if name == b"x-request-id" and _SANE_ID.fullmatch(value):
                self.request_id = value.decode("ascii")
            elif name == b"traceparent":
                self.trace_parent = value.decode("latin-1")
            elif name == b"tracestate":
                self.trace_state = value.decode("latin-1")
        self.key_id: str | None = None
        self.status = 0
        self.ended = self.began
        self.error: str | None = None
        self.error_message: str | None = None
        self.cache: str | None = None
        self.model: str | None = None
        self.digest: str | None = None
        self.operation: str | None = None
        self.order: Order | None = None
        self.form: AnswerForm | None = None
        self.is_stream: bool | None = None
        self.num_choices = self.num_tokens = 0
        self.choices: dict[int, ChoiceRecord] = {}
        self.first_piece: float | None = None
        self.prompt_tokens: int | None = None
        self.aborted = False
        self.answers: list[tuple[int, ChoiceRecord]] = []
        self.tokens = TokenCounts()

    def begin_order(
        self, model: str, order: Order, form: AnswerForm | None, *, stream: bool, digest: str | None = None
    ) -> None:
        """A model is asked. form: what the answers must look like. digest: of the model, if it is one."""
        self.model, self.order, self.form, self.is_stream, self.digest = model, order, form, stream, digest
        self.operation = "chat" if isinstance(order, ChatOrder) else "text_completion"
        self.num_choices = order.n * (1 if isinstance(order, ChatOrder) else len(order.prompts))

    def begin_question(self, model: str, operation: str) -> None:
        """A model is asked for one value."""
        self.model, self.operation = model, operation

    def take(self, pieces: Sequence[Piece]) -> None:
        """What came of the answers."""
        if self.first_piece is None:
            self.first_piece = time.monotonic()
        keeps = self.form is not None or self.keeps_content
        for piece in pieces:
            self.num_tokens += piece.num_tokens
            if not (keeps or piece.scores or piece.finish_reason):
                continue
            choice = self.choices.get(piece.choice)
            if choice is None:
                choice = self.choices[piece.choice] = ChoiceRecord()
            if keeps:
                choice.keep(piece)
            if piece.scores:
                choice.score(piece.scores)
            if piece.finish_reason is not None:
                choice.finish_reason, choice.usage, choice.times = piece.finish_reason, piece.usage, piece.times

    def fail(self, status: int, message: str | None = None) -> None:
        """The request failed as an answer with this status would say. message: only what holds nothing of the user."""
        self.error, self.error_message = error_kind(status), message

    def leave(self) -> None:
        """Whoever waited for the answer has left."""
        self.aborted = not self.is_complete

    def end(self, key_id: str | None) -> None:
        """The request has ended. key_id: of its caller."""
        self.key_id, self.ended = key_id, time.monotonic()
        if self.error is None:
            self.error = error_kind(self.status) or ("client_gone" if self.aborted else None)
        self.answers = sorted(
            (item for item in self.choices.items() if item[1].finish_reason is not None), key=lambda item: item[0]
        )
        self.tokens = self._tokens()

    @property
    def is_complete(self) -> bool:
        """Whether all answers came to their end."""
        ended = [choice for choice in self.choices.values() if choice.finish_reason is not None]
        return bool(ended) and len(ended) == self.num_choices

    @property
    def total_seconds(self) -> float:
        """From the request to the end of the answer."""
        return max(0.0, self.ended - self.began)

    @property
    def first_token_seconds(self) -> float | None:
        """From the request to the first token: as the server read it for a stream, else as the engine chose it."""
        if self.is_stream:
            return None if self.first_piece is None else self.first_piece - self.began
        times = [choice.times.first_token for choice in self.choices.values() if choice.times is not None]
        return max(0.0, min(times) - self.began) if times else None

    @property
    def queue_seconds(self) -> float | None:
        """How long the first answer waited in the engine for its first step."""
        times = [choice.times for choice in self.choices.values() if choice.times is not None]
        first = min(times, key=lambda item: item.scheduled, default=None)
        return None if first is None else max(0.0, first.scheduled - first.queued)

    def _tokens(self) -> TokenCounts:
        """A prompt counts once an answer to it has ended, and once however many answers it has."""
        found = TokenCounts(prompt=self.prompt_tokens or 0, completion=self.num_tokens)
        per_prompt = 1 if self.order is None else self.order.n
        prompts: set[int] = set()
        for index, choice in self.answers:
            if choice.usage is None:
                continue
            if index // per_prompt not in prompts:
                prompts.add(index // per_prompt)
                found.prompt += choice.usage.prompt_tokens
                found.cached += choice.usage.cached_tokens
        return found


@dataclass(slots=True)
class TokenCounts:
    """Tokens of a request. cached: of the prompt, computed before for another request."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


def attach_record(scope: Scope, record: RequestRecord) -> None:
    """Put a record where routes and guards find it."""
    state: dict[str, Any] = scope.setdefault("state", {})
    state[_STATE] = record


def record_of(scope: Scope) -> RequestRecord:
    """The record of a request; one that nobody reads where nothing is watched."""
    return scope.get("state", {}).get(_STATE) or RequestRecord()
