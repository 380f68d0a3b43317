# SPDX-License-Identifier: Apache-2.0
"""Whether a value is a run of whole words of a text, as guided decoding cuts texts into words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator


def is_word_character(character: str) -> bool:
    """Letters, marks, digits and underscores, as `\\w` of Rust's regular expressions has them."""
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def find_whole_words(value: str, text: str) -> Iterator[tuple[int, int]]:
    """Every place where `value` begins and ends at the border of a word, as (start, end); none for empty values."""
    start = text.find(value) if value else -1
    while start >= 0:
        end = start + len(value)
        if not (start and is_word_character(text[start - 1]) and is_word_character(value[0])) and not (
            end < len(text) and is_word_character(text[end]) and is_word_character(value[-1])
        ):
            yield start, end
        start = text.find(value, start + 1)


def is_copied(value: str, text: str) -> bool:
    """Whether `value` is a run of whole words of `text`, white space at its end excluded."""
    return not value[-1:].isspace() and next(find_whole_words(value, text), None) is not None
