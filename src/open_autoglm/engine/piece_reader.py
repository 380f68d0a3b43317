# SPDX-License-Identifier: Apache-2.0
"""`PieceReader`: what the engine says of an answer, as content, reasoning and calls, and the scores of the content."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from open_autoglm.chat.parsing import Delta as ParsedDelta
from open_autoglm.engine.answer_reader import AnswerReader
from open_autoglm.engine.detokenizer import Vocabulary
from open_autoglm.engine.orders import CallPiece
from open_autoglm.engine.request import Delta, TokenLogprob


@dataclass
class Reading:
    """What a delta adds to an answer. scores: of the tokens of `text`."""

    text: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list[CallPiece])
    scores: list[TokenLogprob] = field(default_factory=list[TokenLogprob])


class PieceReader:
    """Reads the deltas of one answer.

    answer: takes it apart; without one all of it is content, and only the scores are sorted out. marks: control tokens
    and tags by id. ends: tokens that a request named as ends of its answer. drop_prefix: what the engine leaves out if
    the answer begins with it. gathers: several deltas without marks may be read as one, since no scores depend on where
    they part. thinks_by_text: only the text says where thinking ends, so none are before the content begins, or the
    tokens of both would count as thought.
    """

    def __init__(
        self,
        answer: AnswerReader | None,
        vocabulary: Vocabulary,
        marks: Mapping[int, str],
        ends: Collection[int] = (),
        drop_prefix: str = "",
        *,
        gathers: bool = False,
        thinks_by_text: bool = False,
    ) -> None:
        self._answer, self._vocabulary, self._marks, self._ends = answer, vocabulary, marks, ends
        self._gathers, self._thinks_by_text = gathers, thinks_by_text
        self._prefix = drop_prefix.encode()
        self._scores: list[TokenLogprob] = []
        self._num_tokens = 0
        self._has_content = False
        self.num_calls = 0
        self.reasoning_tokens = 0
        self.parse_seconds = 0.0

    def read_all(self, deltas: Sequence[Delta]) -> Reading:
        """What several deltas add: those that may be read together are."""
        began = time.perf_counter()
        reading = Reading()
        deltas = self._all_as_one(deltas)
        waiting: list[Delta] = []
        for delta in deltas:
            if self._may_wait(delta):
                waiting.append(delta)
                continue
            if waiting:
                self._read(reading, _as_one(waiting))
                waiting = []
            self._read(reading, delta)
        if waiting:
            self._read(reading, _as_one(waiting))
        if self._answer is not None:
            self.parse_seconds += time.perf_counter() - began
        return reading

    def _all_as_one(self, deltas: Sequence[Delta]) -> Sequence[Delta]:
        """The deltas, or fewer that say the same: mostly all may wait for each other, which is seen at one look."""
        ended = deltas[-1].completion is not None
        waiting = deltas[:-1] if ended else deltas
        if len(waiting) < 2:
            return deltas
        one = _as_one(waiting)
        if not self._may_wait(one):
            return deltas
        return [one, deltas[-1]] if ended else [one]

    def _may_wait(self, delta: Delta) -> bool:
        """Whether a delta may be read together with those that follow it."""
        if not self._gathers or delta.completion is not None or (self._thinks_by_text and not self._has_content):
            return False
        return self._marks.keys().isdisjoint(delta.token_ids)

    def _read(self, reading: Reading, delta: Delta) -> None:
        self._num_tokens += len(delta.token_ids)
        if delta.logprobs:
            # Tokens wait until their text is certain: those of a stop string are never part of the content.
            self._scores += [
                score
                for score in delta.logprobs
                if score.token_id not in self._marks and self._vocabulary.bytes_of(score.token_id)
            ]
        if self._answer is not None:
            for parsed in self._answer.push(self._with_end(delta)):
                self._add(reading, parsed)
        elif delta.text:
            self._add_content(reading, delta.text)

    def _with_end(self, delta: Delta) -> Delta:
        """A tag that ends the answer is no part of the engine's text, but it closes what it closes."""
        last = delta.token_ids[-1] if delta.token_ids else -1
        if delta.completion is None or last not in self._ends or last not in self._marks:
            return delta
        return delta._replace(text=delta.text + self._vocabulary.bytes_of(last).decode(errors="replace"))

    def _add(self, reading: Reading, parsed: ParsedDelta) -> None:
        if parsed.content:
            self._add_content(reading, parsed.content)
            return
        if parsed.reasoning:
            reading.reasoning += parsed.reasoning
            self.reasoning_tokens += self._num_tokens
        elif parsed.tool_call is not None:
            call = parsed.tool_call
            reading.calls.append(CallPiece(self.num_calls, call.id, call.name))
            reading.calls.append(CallPiece(self.num_calls, arguments=call.arguments))
            self.num_calls += 1
        self._scores, self._num_tokens = [], 0

    def _add_content(self, reading: Reading, text: str) -> None:
        scores = self._scores
        if not self._has_content and self._prefix and not text.startswith(self._prefix.decode()):
            first = 0
            while first < len(scores) and not self._bytes_of(scores[first]).strip(self._prefix):
                first += 1
            scores = scores[first:]
        reading.text += text
        reading.scores += scores
        self._has_content = True
        self._scores, self._num_tokens = [], 0

    def _bytes_of(self, score: TokenLogprob) -> bytes:
        return self._vocabulary.bytes_of(score.token_id)


def _as_one(deltas: Sequence[Delta]) -> Delta:
    """Deltas without scores and completion as one."""
    if len(deltas) == 1:
        return deltas[0]
    token_ids = tuple([token_id for delta in deltas for token_id in delta.token_ids])
    return Delta(deltas[0].request_id, "".join([delta.text for delta in deltas]), token_ids)
