# SPDX-License-Identifier: Apache-2.0
"""Which of many texts may hold personal data or secrets: most are ruled out together, by passes over their bytes."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np

from open_autoglm.data.privacy import (
    ANNOUNCING,
    ANNOUNCING_WIDE,
    API_KEY,
    COLONS,
    DIGITS,
    DIGITS_LEAST,
    DOTTED_LEAST,
    LONG_RUN,
    OTHER_DIGIT,
    RUN_MARKS,
    begins_key,
)

_API: Final = b"api"
_WORDS: Final = (*ANNOUNCING, _API)
_BETWEEN: Final = "\n"
_HEXADECIMAL: Final = np.array([chr(code) in "0123456789abcdefABCDEF" for code in range(256)])
_DIGIT: Final = frozenset(b"0123456789")


def places_worth_a_look(texts: Sequence[str]) -> list[int]:
    """The places of the texts of which `privacy.is_worth_a_look` says so, in order."""
    if not texts:
        return []
    found = np.zeros(len(texts), dtype=np.bool_)
    joined = _BETWEEN.join(texts)
    data = joined.encode("utf-8", "surrogatepass")
    is_ascii = len(data) == len(joined)
    lengths = map(len, texts) if is_ascii else (len(text.encode("utf-8", "surrogatepass")) for text in texts)
    sizes = np.fromiter(lengths, np.int64, len(texts)) + len(_BETWEEN)
    starts = np.cumsum(sizes) - sizes
    places = starts.tolist()
    _mark_words(data.lower(), places, found, _WORDS)
    if not is_ascii:
        _mark_words(data, places, found, ANNOUNCING_WIDE)
    codes = np.frombuffer(data, dtype=np.uint8)

    def count(at: np.ndarray) -> np.ndarray:
        return np.bincount(np.searchsorted(starts, at, side="right") - 1, minlength=len(texts))

    digits = count(np.flatnonzero((codes - np.uint8(ord("0"))) < 10))
    enough = (digits >= DIGITS_LEAST) | ((digits >= DOTTED_LEAST) & (count(np.flatnonzero(codes == ord("."))) > 0))
    if not is_ascii:
        # Other scripts have digits of their own.
        enough |= np.fromiter(
            (not t.isascii() and OTHER_DIGIT.search(t) is not None for t in texts), np.bool_, len(texts)
        )
    _mark_matches(DIGITS, enough, texts, found)
    colons = np.flatnonzero(codes == ord(":"))
    _mark_matches(COLONS, count(colons[_HEXADECIMAL[codes[colons - 1]]]) > 0, texts, found)
    _mark_runs(data, places, found, texts)
    return np.flatnonzero(found).tolist()


def _mark_words(data: bytes, starts: list[int], found: np.ndarray, words: Sequence[bytes]) -> None:
    """Texts with a word that announces something."""
    for word in words:
        at = data.find(word)
        while at >= 0:
            place = bisect_right(starts, at)
            end = starts[place] if place < len(starts) else len(data)
            if word != _API or API_KEY.search(data, at, end) is not None:
                found[place - 1] = True
            at = data.find(word, end)


def _mark_matches(pattern: re.Pattern[str], worth: np.ndarray, texts: Sequence[str], found: np.ndarray) -> None:
    """Texts in which a pattern matches, of those for which it is worth while to try."""
    for place in np.flatnonzero(worth & ~found).tolist():
        found[place] = pattern.search(texts[place]) is not None


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
