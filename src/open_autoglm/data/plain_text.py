# SPDX-License-Identifier: Apache-2.0
"""Running text -> chunks to learn from, cut where a reader would pause."""

from __future__ import annotations

import re
from typing import Final

CHUNK_CHARACTERS: Final = 1000
_SENTENCE_END: Final = re.compile(r"(?<=[.!?。！？；…])[\"'”’」』)）]*\s*")


def chunk_text(text: str, limit: int = CHUNK_CHARACTERS) -> list[tuple[int, str]]:
    """Cut a text into pieces of at most about `limit` characters -> (line where the piece starts, piece).

    Paragraphs (set off by blank lines, or else lines) stay whole and are joined while they fit; one that is longer
    is cut at ends of sentences, and a sentence that is longer still at the limit. No character but outer white space
    is lost.
    """
    separator = r"\n[ \t]*\n" if re.search(r"\n[ \t]*\n", text) else r"\n"
    chunks: list[tuple[int, str]] = []
    start: int | None = None
    end = 0
    for first, last in _paragraphs(text, separator):
        if start is not None and last - start > limit:
            chunks.extend(_cut(text, start, end, limit))
            start = None
        if start is None:
            start = first
        end = last
    if start is not None:
        chunks.extend(_cut(text, start, end, limit))
    return _with_lines(text, chunks)


def _paragraphs(text: str, separator: str) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    start = 0
    for match in re.finditer(separator, text):
        spans.append((start, match.start()))
        start = match.end()
    spans.append((start, len(text)))
    return [(first, last) for first, last in spans if text[first:last].strip()]


def _cut(text: str, start: int, end: int, limit: int) -> list[tuple[int, str]]:
    """A span -> (offset, piece), at sentence ends where it is longer than the limit."""
    pieces: list[tuple[int, str]] = []
    while end - start > limit:
        cut = start + limit
        for match in _SENTENCE_END.finditer(text, start + limit // 4, start + limit):
            cut = match.end()
        pieces.append((start, text[start:cut]))
        start = cut
    pieces.append((start, text[start:end]))
    kept = []
    for offset, piece in pieces:
        stripped = piece.strip()
        if stripped:
            kept.append((offset + len(piece) - len(piece.lstrip()), stripped))
    return kept


def _with_lines(text: str, chunks: list[tuple[int, str]]) -> list[tuple[int, str]]:
    numbered: list[tuple[int, str]] = []
    line, place = 1, 0
    for offset, piece in chunks:
        line += text.count("\n", place, offset)
        place = offset
        numbered.append((line, piece))
    return numbered
