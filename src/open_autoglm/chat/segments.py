# SPDX-License-Identifier: Apache-2.0
"""Rendered prompts as segments, and their token ids: text that anybody typed never becomes a control token.

A segment is a control token, a tag, or text. Control tokens must be in the tokenizer. Tags, such as `<think>`, are
tokens where the tokenizer has them and text where it has not. Text is encoded with the tokenizer's control tokens
switched off; the library can do that for tokens marked as special only, so the other ones are taken apart by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tokenizers import Encoding, Tokenizer

from open_autoglm.errors import CheckpointError

_UNKNOWN: Final = ("<unk>", "[unk]")
_TAG_SHAPE: Final = re.compile(r"<[^<>\s\"]+>|\[[A-Za-z]+\]|/nothink")

_SHORT: Final = 500
"""Characters that are encoded in less than two tenths of a millisecond, for which other threads of Python may wait."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a rendered prompt.

    control: one control token. tag: a mark of the format, which is one token if the tokenizer has it. learn: the
    loss counts it.
    """

    text: str
    control: bool = False
    learn: bool = False
    tag: bool = False


class PromptEncoder:
    """Segments -> token ids with one tokenizer. It keeps what it found out about the tokenizer's control tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int | None] = {}
        added = tokenizer.get_added_tokens_decoder()
        # Pieces of JSON that a tokenizer of ours knows as tokens of their own are text; what looks like a tag is not.
        marks = {
            token_id: token
            for token_id, token in added.items()
            if (token.special or _TAG_SHAPE.fullmatch(token.content)) and token.content.lower() not in _UNKNOWN
        }
        self._forbidden = frozenset(marks)
        self._apart = _any_of([token.content for token in marks.values() if not token.special])
        self._all_apart = _any_of([token.content for token in marks.values()])

    def encode(self, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
        """Token ids, and for each whether the loss counts it.

        Raises CheckpointError if the tokenizer lacks a control token.
        """
        [row] = self.encode_many([segments])
        token_ids = [token_id for ids, _ in row for token_id in ids]
        learn = [flag for ids, flag in row for _ in ids]
        return token_ids, learn

    def encode_many(self, rows: Sequence[Sequence[Segment]]) -> list[list[tuple[list[int], bool]]]:
        """The same for many prompts in one call of the library: for each the stretches of ids, and if they count."""
        laid_out: list[list[tuple[int | list[str], bool]]] = []
        texts: list[str] = []
        for segments in rows:
            row: list[tuple[int | list[str], bool]] = []
            for text, token_id, learn in self._stretches(segments):
                if token_id is not None:
                    row.append((token_id, learn))
                    continue
                pieces = _cut(text, self._apart)
                texts.extend(pieces)
                row.append((pieces, learn))
            laid_out.append(row)
        self._tokenizer.encode_special_tokens = True
        encodings = iter(self._encodings(texts))
        encoded: list[list[tuple[list[int], bool]]] = []
        for row in laid_out:
            stretches: list[tuple[list[int], bool]] = []
            for item, learn in row:
                if isinstance(item, int):
                    stretches.append(([item], learn))
                else:
                    ids = [token_id for piece in item for token_id in self._checked(piece, next(encodings).ids)]
                    stretches.append((ids, learn))
            encoded.append(stretches)
        return encoded

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text: control tokens typed in it are taken apart like any other text."""
        self._tokenizer.encode_special_tokens = True
        pieces = _cut(text, self._apart)
        ids: list[int] = []
        for piece in pieces:
            ids.extend(self._checked(piece, self._tokenizer.encode(piece, add_special_tokens=False).ids))
        return ids

    def token_id(self, token: str) -> int | None:
        """The id of a control token or tag, if the tokenizer has it."""
        if token not in self._known:
            self._known[token] = self._tokenizer.token_to_id(token)
        return self._known[token]

    def _encodings(self, texts: list[str]) -> list[Encoding]:
        """Of several texts at once the library makes work for its own threads, and to wake these takes longer than a
        few short texts do; longer still where an engine keeps all cores busy."""
        if sum(map(len, texts)) > _SHORT:
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def _checked(self, piece: str, ids: list[int]) -> list[int]:
        """Some models, Unigram for one, have control tokens among their pieces and may find them in a text."""
        if self._forbidden.isdisjoint(ids):
            return ids
        parts = (self._tokenizer.encode(part, add_special_tokens=False).ids for part in _cut(piece, self._all_apart))
        # What is left comes of a normalizer that makes control tokens of look-alikes.
        return [token_id for part in parts for token_id in part if token_id not in self._forbidden]

    def _stretches(self, segments: Sequence[Segment]) -> Iterator[tuple[str, int | None, bool]]:
        """Neighbouring texts that count alike are one text, so that words are cut as in the whole."""
        text, learn = "", False
        for segment in segments:
            token_id = self.token_id(segment.text) if segment.control or segment.tag else None
            if segment.control and token_id is None:
                raise CheckpointError(f"the tokenizer has no token '{segment.text}', which GLM's chat format needs")
            if text and (token_id is not None or segment.learn != learn):
                yield text, None, learn
                text = ""
            if token_id is not None:
                yield segment.text, token_id, segment.learn
            elif segment.text:
                text, learn = text + segment.text, segment.learn
        if text:
            yield text, None, learn


def encode(segments: Sequence[Segment], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Token ids, and for each whether the loss counts it.

    Raises CheckpointError if the tokenizer lacks a control token of the format.
    """
    return PromptEncoder(tokenizer).encode(segments)


def encode_text(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of plain text: control tokens typed in it are taken apart like any other text."""
    return PromptEncoder(tokenizer).encode_text(text)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str] | None:
    cuttable = sorted({token for token in tokens if len(token) > 1}, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in cuttable)) if cuttable else None


def _cut(text: str, tokens: re.Pattern[str] | None) -> list[str]:
    """The text in pieces none of which holds one of the tokens whole: each is cut after its first character."""
    if tokens is None:
        return [text]
    pieces: list[str] = []
    start = 0
    while found := tokens.search(text, start):
        pieces.append(text[start : found.start() + 1])
        start = found.start() + 1
    pieces.append(text[start:])
    return pieces
