# SPDX-License-Identifier: Apache-2.0
"""An order that somebody waits for: what has come of its answer, and who is woken when more comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from open_autoglm.engine.orders import Piece
from open_autoglm.engine.piece_merging import merge_pieces
from open_autoglm.errors import EngineError, OpenAutoGLMError

MAX_UNREAD: Final = 16 * 1024 * 1024
"""About how many bytes of an answer may wait for a reader that is slower than the engine."""

_SCORE_BYTES: Final = 120


class OpenOrder:
    """What has come of an answer and was not read yet.

    num_choices: that it has. whole: nothing is handed out before the end.
    """

    def __init__(self, num_choices: int, *, whole: bool) -> None:
        self.num_choices, self.whole = num_choices, whole
        self.is_done = False
        self._pieces: list[Piece] = []
        self._unread = 0
        self._error: OpenAutoGLMError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def add(self, pieces: Sequence[Piece], *, is_last: bool) -> None:
        """Keep pieces until they are read, and wake whoever waits, for the whole if that is wanted."""
        self._pieces += pieces
        self.is_done = is_last
        if not self.whole:
            self._unread += sum(map(_size, pieces))
            if self._unread > MAX_UNREAD:
                self.fail(EngineError("the answer was not read as fast as it was written, and was given up"))
        if is_last or not self.whole:
            self._wake()

    @property
    def has_failed(self) -> bool:
        """Whether the order ended with an error."""
        return self._error is not None

    def fail(self, error: OpenAutoGLMError) -> None:
        """End with an error, after what has come."""
        if self._error is None:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> list[Piece]:
        """What is new, one piece for each choice; empty at the end. Raises the error that the order ended with."""
        while True:
            if self._pieces and (self.is_done or not self.whole):
                pieces, self._pieces, self._unread = self._pieces, [], 0
                return merge_pieces(pieces)
            if self._error is not None:
                raise self._error
            if self.is_done:
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


def _size(piece: Piece) -> int:
    return 64 + len(piece.text) + sum(_SCORE_BYTES * (1 + len(score.top)) for score in piece.scores)
