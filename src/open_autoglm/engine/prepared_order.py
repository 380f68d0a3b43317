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
        reader = self.readers.get(delta.request_id)
        reading = Reading(delta.text) if reader is None else reader.read(delta)
        completion = delta.completion
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
        return [
            Piece(
                self.places[delta.request_id],
                reading.text,
                len(delta.token_ids),
                [self._score(item) for item in reading.scores],
                reason,
                usage,
                reading.reasoning,
                reading.calls,
                times,
            )
        ]

    def _score(self, item: TokenLogprob) -> TokenScore:
        return TokenScore(
            self._bytes_of(item.token_id),
            item.logprob,
            [(self._bytes_of(token_id), logprob) for token_id, logprob in item.top],
        )

    def _bytes_of(self, token_id: int) -> bytes:
        return b"" if self.vocabulary is None else self.vocabulary.bytes_of(token_id)
