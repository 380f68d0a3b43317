# SPDX-License-Identifier: Apache-2.0
"""Checked orders and questions: their engine requests, and what the engine says of them in plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from open_autoglm.engine.detokenizer import Vocabulary
from open_autoglm.engine.orders import CallPiece, Piece, Reply, Times, TokenScore, Usage
from open_autoglm.engine.piece_reader import PieceReader
from open_autoglm.engine.request import Completion, Delta, Request, TokenLogprob


@dataclass(frozen=True)
class PreparedQuestion:
    """A question's engine requests, which may be none, and what makes the reply of their completions."""

    requests: Sequence[Request]
    reply: Callable[[Sequence[Completion]], Reply]


@dataclass(frozen=True)
class PreparedOrder:
    """The engine's requests of an order, one per choice, and how to read what they say.

    places: the choice of each request, by its id. readers: of the answers that must be taken apart.
    """

    requests: Sequence[Request]
    places: Mapping[str, int]
    vocabulary: Vocabulary | None
    readers: Mapping[str, PieceReader] = field(default_factory=dict[str, PieceReader])

    def pieces(self, delta: Delta) -> list[Piece]:
        """What a delta adds to the answer."""
        buffer = PieceBuffer(self)
        buffer.add(delta)
        return buffer.take()


class _Draft:
    """What is new in one choice."""

    __slots__ = ("calls", "completion", "num_tokens", "reasoning", "scores", "texts", "unread")

    def __init__(self) -> None:
        self.unread: list[Delta] = []
        self.texts: list[str] = []
        self.num_tokens = 0
        self.scores: list[TokenLogprob] = []
        self.reasoning = ""
        self.calls: list[CallPiece] = []
        self.completion: Completion | None = None


class PieceBuffer:
    """What deltas have added to an order's choices and nobody has taken yet: one piece for each choice, however many.

    num_deltas: since `take`.
    """

    __slots__ = ("_drafts", "_prepared", "_readers", "num_deltas")

    def __init__(self, prepared: PreparedOrder) -> None:
        self._prepared, self._readers = prepared, prepared.readers
        self._drafts: dict[str, _Draft] = {}
        self.num_deltas = 0

    def add(self, delta: Delta) -> None:
        """Read a delta."""
        name = delta.request_id
        draft = self._drafts.get(name)
        if draft is None:
            draft = self._drafts[name] = _Draft()
        self.num_deltas += 1
        draft.num_tokens += len(delta.token_ids)
        if delta.completion is not None:
            draft.completion = delta.completion
        reader = self._readers.get(name) if self._readers else None
        if reader is None:
            draft.texts.append(delta.text)
        elif reader.may_wait(delta):
            draft.unread.append(delta)
        else:
            self._read_waiting(reader, draft)
            self._read(reader, draft, delta)

    def take(self) -> list[Piece]:
        """What was added since the last time."""
        drafts, self._drafts, self.num_deltas = self._drafts, {}, 0
        return [self._piece(name, draft) for name, draft in drafts.items()]

    def _read_waiting(self, reader: PieceReader, draft: _Draft) -> None:
        """Read the deltas that wait as one."""
        waiting, draft.unread = draft.unread, []
        if len(waiting) == 1:
            self._read(reader, draft, waiting[0])
        elif waiting:
            token_ids = tuple([token_id for delta in waiting for token_id in delta.token_ids])
            text = "".join([delta.text for delta in waiting])
            self._read(reader, draft, Delta(waiting[0].request_id, text, token_ids, ()))

    def _read(self, reader: PieceReader, draft: _Draft, delta: Delta) -> None:
        reading = reader.read(delta)
        draft.texts.append(reading.text)
        draft.reasoning += reading.reasoning
        draft.calls += reading.calls
        draft.scores += reading.scores

    def _piece(self, name: str, draft: _Draft) -> Piece:
        completion, reader = draft.completion, self._readers.get(name)
        if reader is not None:
            self._read_waiting(reader, draft)
        reason = usage = times = None
        if completion is not None:
            reason = completion.finish_reason
            if reader is not None and reader.num_calls and reason == "stop":
                reason = "tool_calls"
            usage = Usage(
                completion.prompt_tokens,
                completion.completion_tokens,
                completion.cached_tokens,
                0 if reader is None else reader.reasoning_tokens,
            )
            if completion.times is not None:
                times = Times(*completion.times, 0.0 if reader is None else reader.parse_seconds)
        return Piece(
            self._prepared.places[name],
            "".join(draft.texts),
            draft.num_tokens,
            [self._score(item) for item in draft.scores],
            reason,
            usage,
            draft.reasoning,
            draft.calls,
            times,
        )

    def _score(self, item: TokenLogprob) -> TokenScore:
        return TokenScore(
            self._bytes_of(item.token_id),
            item.logprob,
            [(self._bytes_of(token_id), logprob) for token_id, logprob in item.top],
        )

    def _bytes_of(self, token_id: int) -> bytes:
        vocabulary = self._prepared.vocabulary
        return b"" if vocabulary is None else vocabulary.bytes_of(token_id)
