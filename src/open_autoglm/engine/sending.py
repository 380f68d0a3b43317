# SPDX-License-Identifier: Apache-2.0
"""When what was generated is sent: the first and the last of an answer at once, what lies between them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from open_autoglm.engine.orders import Piece
from open_autoglm.engine.prepared_order import PieceBuffer, PreparedOrder
from open_autoglm.engine.request import Delta
from open_autoglm.engine.wire import Part

_FEW_ANSWERS: Final = 4
_SECONDS_PER_ANSWER: Final = 0.003
_LONGEST_PACE: Final = 0.1
_MOST_HELD: Final = 256


def pace_seconds(num_answers: int) -> float:
    """How long what follows the first piece of an answer may wait for more, so that it is sent together.

    To read, pack, send and unpack costs about the same for a token as for ten. A few answers get each step at once;
    with 32 a message brings about 100 milliseconds of text, and a reader still sees it grow ten times a second.
    """
    if num_answers <= _FEW_ANSWERS:
        return 0.0
    return min(_LONGEST_PACE, _SECONDS_PER_ANSWER * num_answers)


class OpenAnswer:
    """An order in work: what came of it and was not sent yet.

    number: what the server calls it. whole: it is wanted at its end only. left: nobody waits for it any more.
    keep: does what `add` does with a delta that has no completion, in less time; nothing until `begin`.
    """

    __slots__ = ("_buffer", "_unfinished", "has_begun", "keep", "left", "number", "request_ids", "whole")

    def __init__(self, number: int, *, whole: bool) -> None:
        self.number, self.whole = number, whole
        self.has_begun = self.left = False
        self.request_ids: Sequence[str] = ()
        self.keep: Callable[[Delta], None] | None = None
        self._buffer: PieceBuffer | None = None
        self._unfinished: set[str] = set()

    def begin(self, prepared: PreparedOrder) -> None:
        """Its requests are known."""
        self._buffer = PieceBuffer(prepared)
        self.keep = self._buffer.add
        self.request_ids = list(prepared.places)
        self._unfinished = set(prepared.places)

    @property
    def is_done(self) -> bool:
        """Whether all its choices have ended."""
        return not self._unfinished

    def add(self, delta: Delta) -> None:
        """What the engine says of one choice."""
        if self._buffer is not None:
            self._buffer.add(delta)
        if delta.completion is not None:
            self._unfinished.discard(delta.request_id)

    @property
    def is_urgent(self) -> bool:
        """Whether what has come goes out at once. What is wanted whole goes in large parts, so that none is huge."""
        if not self._unfinished:
            return True
        return self.has_much if self.whole else not self.has_begun

    @property
    def has_news(self) -> bool:
        """Whether anything has come that is sent when it is next looked for."""
        if self.whole:
            return self.has_much
        return self._buffer is not None and self._buffer.num_deltas > 0

    @property
    def has_much(self) -> bool:
        """Whether so much has come that it is not held any longer."""
        return self._buffer is not None and self._buffer.num_deltas >= _MOST_HELD

    def part(self) -> Part:
        """All that was not sent yet."""
        pieces: list[Piece] = [] if self._buffer is None else self._buffer.take()
        self.has_begun = True
        return Part(self.number, pieces, self.is_done)


class Pacer:
    """Decides after each step which answers are sent. now: the clock.

    An answer is looked at when `choose` is told of it, and from then to its end whenever it is time to send what was
    held; so nobody need tell of what lies between.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._running: dict[OpenAnswer, None] = {}
        self._due = 0.0

    def choose(self, answers: Iterable[OpenAnswer], num_answers: int) -> list[OpenAnswer]:
        """Those to send now. answers: that a step brought a beginning or an end for. num_answers: all in work."""
        chosen: dict[OpenAnswer, None] = {}
        running = self._running
        for answer in answers:
            if answer.is_urgent:
                chosen[answer] = None
            if answer.is_done:
                running.pop(answer, None)
            else:
                running[answer] = None
        if running and (now := self._now()) >= self._due:
            self._due = now + pace_seconds(num_answers)
            for answer in list(running):
                if answer.left:
                    del running[answer]
                elif answer.has_news:
                    chosen[answer] = None
        return [answer for answer in chosen if not answer.left]

    def forget(self, answer: OpenAnswer) -> None:
        """An answer that is sent, or ended, in another way."""
        self._running.pop(answer, None)
