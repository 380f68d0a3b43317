# SPDX-License-Identifier: Apache-2.0
"""Checked orders and questions: their engine requests, and what the engine says of them in plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from open_autoglm.engine.detokenizer import Vocabulary
from open_autoglm.engine.orders import Piece, Reply, Times, TokenScore, Usage
from open_autoglm.engine.piece_reader import PieceReader, Reading
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


class PieceBuffer:
    """What deltas have added to an order's choices and nobody has taken yet: one piece for each choice, however many.

    A delta is only kept until then: to read many at once costs little more than to read one, and the engine's thread,
    which adds them step by step, has better things to do.
    """

    __slots__ = ("_deltas", "_prepared", "_readers", "add")

    def __init__(self, prepared: PreparedOrder) -> None:
        self._prepared, self._readers = prepared, prepared.readers
        self._deltas: list[Delta] = []
        self.add: Callable[[Delta], None] = self._deltas.append

    @property
    def num_deltas(self) -> int:
        """How many were added since `take`."""
        return len(self._deltas)

    def take(self) -> list[Piece]:
        """What was added since the last time."""
        deltas = self._deltas.copy()
        self._deltas.clear()
        if len(self._prepared.places) == 1:
            return [self._piece(deltas[0].request_id, deltas)] if deltas else []
        by_name: dict[str, list[Delta]] = {}
        for delta in deltas:
            by_name.setdefault(delta.request_id, []).append(delta)
        return [self._piece(name, some) for name, some in by_name.items()]

    def _piece(self, name: str, deltas: Sequence[Delta]) -> Piece:
        """What is new in one choice. deltas: its own, one at least."""
        completion, reader = deltas[-1].completion, self._readers.get(name)
        reading = Reading("".join([delta.text for delta in deltas])) if reader is None else reader.read_all(deltas)
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
            reading.text,
            sum([len(delta.token_ids) for delta in deltas]),
            [self._score(item) for item in reading.scores],
            reason,
            usage,
            reading.reasoning,
            reading.calls,
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
