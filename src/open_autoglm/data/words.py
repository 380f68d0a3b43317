# SPDX-License-Identifier: Apache-2.0
"""Whether a value is a run of whole words of a text, as guided decoding cuts texts into words.

llguidance's `substring_words` cuts between characters of different sorts: letters and digits, white space, the rest.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator


def find_whole_words(value: str, text: str) -> Iterator[tuple[int, int]]:
    """Every place where `value` begins and ends at the border of a word, as (start, end); none for empty values."""
    start = text.find(value) if value else -1
    while start >= 0:
        end = start + len(value)
        begins = start == 0 or _sort(text[start - 1]) != _sort(value[0])
        if begins and (end == len(text) or _sort(text[end]) != _sort(value[-1])):
            yield start, end
        start = text.find(value, start + 1)


def is_copied(value: str, text: str) -> bool:
    """Whether `value` is a run of whole words of `text`."""
    return next(find_whole_words(value, text), None) is not None


def _sort(character: str) -> str:
    """Marks count as letters: most of them are to llguidance, and a letter is never cut from its mark here."""
    if character.isalnum() or character == "_":
        return "word"
    if character.isspace():
        return "space"
    return "word" if unicodedata.category(character)[0] == "M" else "rest"
