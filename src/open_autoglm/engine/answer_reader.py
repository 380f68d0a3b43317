# SPDX-License-Identifier: Apache-2.0
"""From an answer's tokens to its parts: content, reasoning and calls, while it streams or once it is whole."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from open_autoglm.chat.parsing import AnswerParser, ParsedAnswer
from open_autoglm.chat.parsing import Delta as ParsedDelta
from open_autoglm.engine.detokenizer import Vocabulary
from open_autoglm.engine.request import Completion, Delta


@dataclass
class _Piece:
    """What a token stands for. mark: a control token or tag. cost: its characters in the answer's text."""

    text: str
    mark: bool
    cost: int


class AnswerReader:
    """Reads the deltas of one request; each says by its tokens what is a mark, and by its text how much is certain.

    marks: control tokens and tags by id, `ChatFormat.marks`. drop_prefix: what the engine leaves out of the text.
    """

    def __init__(
        self, parser: AnswerParser, vocabulary: Vocabulary, marks: Mapping[int, str], drop_prefix: str = ""
    ) -> None:
        self._parser, self._vocabulary, self._marks = parser, vocabulary, marks
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: deque[_Piece] = deque()
        self._prefix = drop_prefix
        self._certain = 0

    @property
    def answer(self) -> ParsedAnswer:
        """All that was read so far."""
        return self._parser.answer

    def push(self, delta: Delta) -> list[ParsedDelta]:
        """What the engine added; returns what is now certain, and all that was held back after the last delta."""
        if not (self._waiting or self._prefix or delta.text or delta.completion) and len(delta.token_ids) == 1:
            token_id = delta.token_ids[0]
            mark = self._marks.get(token_id)
            if mark is not None and not self._vocabulary.bytes_of(token_id):  # of many a control token, all there is
                return self._parser.push(mark, control=True)
        if self._marks.keys().isdisjoint(delta.token_ids):
            self._take_text(b"".join(map(self._vocabulary.bytes_of, delta.token_ids)))
        else:
            for token_id in delta.token_ids:
                self._take(token_id)
        last = delta.completion is not None
        if last and (rest := self._decoder.decode(b"", final=True)):
            self._waiting.append(_Piece(rest, mark=False, cost=len(rest)))
        self._certain += len(delta.text)
        if self._prefix and (self._certain or last):
            # The engine has left the prefix out of its text; the parser needs it.
            if "".join(piece.text[: piece.cost] for piece in self._waiting).startswith(self._prefix):
                self._certain += len(self._prefix)
            self._prefix = ""
        found = self._release(last)
        return [*found, *self._parser.finish()] if last else found

    def read(self, completion: Completion) -> ParsedAnswer:
        """The parts of a whole answer, for a reader that has read nothing yet."""
        self.push(Delta("", completion.text, completion.token_ids, (), completion))
        return self.answer

    def _take(self, token_id: int) -> None:
        written = self._vocabulary.bytes_of(token_id)
        mark = self._marks.get(token_id)
        if mark is None:
            self._take_text(written)
            return
        text = self._decoder.decode(written)
        # A tag is text in the answer too, and may end a character that was cut in the middle.
        before = text.removesuffix(mark)
        if before:
            self._waiting.append(_Piece(before, mark=False, cost=len(before)))
        self._waiting.append(_Piece(mark, mark=True, cost=len(text) - len(before)))

    def _take_text(self, written: bytes) -> None:
        """What tokens stand for that are no marks: one, or any number in a row."""
        text = self._decoder.decode(written)
        last = self._waiting[-1] if self._waiting else None
        if last is not None and not last.mark:
            last.text += text
            last.cost += len(text)
        elif text:
            self._waiting.append(_Piece(text, mark=False, cost=len(text)))

    def _release(self, last: bool) -> list[ParsedDelta]:
        found: list[ParsedDelta] = []
        while self._waiting and (self._certain or not self._waiting[0].cost):
            if self._waiting[0].mark and self._waiting[0].cost > self._certain and not last:
                break
            piece = self._waiting.popleft()
            if piece.mark and piece.cost <= self._certain:
                self._certain -= piece.cost
                found += self._parser.push(piece.text, control=True)
                continue
            taken = piece.text[: self._certain]
            self._certain -= len(taken)
            if len(taken) < piece.cost:
                self._waiting.appendleft(_Piece(piece.text[len(taken) :], mark=False, cost=piece.cost - len(taken)))
            found += self._parser.push(taken)
        return found
