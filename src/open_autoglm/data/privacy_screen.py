# SPDX-License-Identifier: Apache-2.0
"""Which of many texts may hold personal data or secrets: most are ruled out together, by passes over their bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np

from open_autoglm.data.privacy import ANNOUNCING, DIGITS_LEAST, DOTTED_LEAST, LONG_RUN, RUN_MARKS, begins_key

_WORDS: Final = (*ANNOUNCING, b"api")
_BETWEEN: Final = "\n"
_HEXADECIMAL: Final = np.array([chr(code) in "0123456789abcdefABCDEF" for code in range(256)])
_DIGIT: Final = frozenset(b"0123456789")


def places_worth_a_look(texts: Sequence[str]) -> list[int]:
    """The places of all texts of which `privacy.is_worth_a_look` says so, and of few others, in order.

    Texts that are not ASCII are looked at one by one: none is ruled out here.
    """
    if not texts:
        return []
    found = np.zeros(len(texts), dtype=np.bool_)
    joined = _BETWEEN.join(texts)
    if not joined.isascii():
        found[:] = [not text.isascii() for text in texts]
        texts = [text if text.isascii() else "" for text in texts]
        joined = _BETWEEN.join(texts)
    data = joined.encode()
    sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + len(_BETWEEN)
    starts = np.cumsum(sizes) - sizes
    places = starts.tolist()
    _mark_words(data.lower(), places, found)
    codes = np.frombuffer(data, dtype=np.uint8)

    def count(at: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(starts, at, side="right") - 1, minlength=len(texts))

    digits = count(np.flatnonzero((codes - np.uint8(ord("0"))) < 10))
    found |= digits >= DIGITS_LEAST
    found |= (digits >= DOTTED_LEAST) & (count(np.flatnonzero(codes == ord("."))) > 0)
    colons = np.flatnonzero(codes == ord(":"))
    found |= count(colons[_HEXADECIMAL[codes[colons - 1]]]) > 0
    _mark_runs(data, places, found, texts)
    return np.flatnonzero(found).tolist()


def _mark_words(lowered: bytes, starts: list[int], found: np.ndarray) -> None:
    """Texts with a word that announces something."""
    for word in _WORDS:
        at = lowered.find(word)
        while at >= 0:
            place = bisect_right(starts, at)
            found[place - 1] = True
            at = lowered.find(word, starts[place]) if place < len(starts) else -1


def _mark_runs(data: bytes, starts: list[int], found: np.ndarray, texts: Sequence[str]) -> None:
    """Texts with a long run of letters and digits that has a digit in it, or that begins as keys do."""
    marks = data.translate(RUN_MARKS)
    at = marks.find(LONG_RUN)
    while at >= 0:
        end = marks.find(b" ", at)
        end = len(marks) if end < 0 else end
        place = bisect_right(starts, at) - 1
        if not found[place] and (not _DIGIT.isdisjoint(data[at:end]) or begins_key(texts[place])):
            found[place] = True
        at = marks.find(LONG_RUN, end)
