# SPDX-License-Identifier: Apache-2.0
"""Which field of the answer each word of an input is copied to, said of the second time that the input is read.

A model that extracts fields has to know of each word what it is before it writes the first one down. The answer alone
says so late and sparsely; these tags say it of every word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from open_autoglm.chat.messages import Role
from open_autoglm.chat.template import ROLE_TOKENS
from open_autoglm.data.encoding import UNTAGGED, TokenizedExamples, TokenTags
from open_autoglm.data.tokenizer import spaced_twins

_OUTSIDE: Final = 0
_COPIED_SHARE: Final = 0.9
_OPENS_FIELD: Final = re.compile(r'"((?:[^"\\]|\\.)+)": \[?"$')
_NEXT_ITEM: Final = '", "'


class FieldTagger:
    """Tags the inputs of extractions that are read twice (`chat.built.ReadTwiceFormat`).

    Fields are told by their names as they stand in the answers; a field is one that copies if nine tenths of its
    strings stand in their inputs. examples: from which that is learnt, of the training split.
    count: how many different tags there are: 0 of what is copied nowhere, and two for each field, of the first token of
    its values and of those after it.
    """

    def __init__(self, tokenizer: Tokenizer, examples: TokenizedExamples) -> None:
        size = tokenizer.get_vocab_size()
        self._word = np.arange(size)
        for spaced, bare in spaced_twins(tokenizer):
            self._word[spaced] = bare
        self._user, self._assistant = (tokenizer.token_to_id(ROLE_TOKENS[role]) for role in (Role.USER, Role.ASSISTANT))
        self._opens: dict[int, int] = {}
        self._next_item, self._closes = set[int](), set[int]()
        names: dict[str, int] = {}
        for token in range(size):
            text = tokenizer.decode([token], skip_special_tokens=False)
            if (field := _OPENS_FIELD.search(text)) is not None:
                self._opens[token] = names.setdefault(field[1], len(names))
            elif text == _NEXT_ITEM:
                self._next_item.add(token)
            elif text.startswith('"'):
                self._closes.add(token)
        self._tags: dict[int, int] = {}
        copying = self._fields_that_copy(examples)
        for place, field in enumerate(copying):
            self._tags[field] = 1 + 2 * place
        self.count = 1 + 2 * len(copying)

    def tag(self, examples: TokenizedExamples) -> TokenTags:
        """The tags of examples in the tokenizer's tokens.

        Where a value of a field that copies does not stand in the input, nothing is said of the words outside of the
        others; nothing at all of an example whose input does not stand there twice.
        """
        values = np.full(len(examples.token_ids), UNTAGGED, dtype=np.int32)
        for start, row, words in self._rows(examples):
            reading = self._second_reading(row, words)
            if reading is None:
                continue
            first, end = reading
            text, tags, behind = words[first:end], [_OUTSIDE] * (end - first), 0
            for field, value in self._strings(row, words):
                if (tag := self._tags.get(field)) is None:
                    continue
                at = _find(text, value, behind)
                at = _find(text, value, 0) if at < 0 else at
                if at < 0:
                    tags = [UNTAGGED if known == _OUTSIDE else known for known in tags]
                    continue
                behind = at + len(value)
                tags[at:behind] = [tag, *[tag + 1] * (len(value) - 1)]
            values[start + first : start + end] = tags
        return TokenTags(values, self.count)

    def _fields_that_copy(self, examples: TokenizedExamples) -> list[int]:
        seen, copied = Counter[int](), Counter[int]()
        for _, row, words in self._rows(examples):
            reading = self._second_reading(row, words)
            if reading is None:
                continue
            text = words[slice(*reading)]
            for field, value in self._strings(row, words):
                seen[field] += 1
                copied[field] += _find(text, value, 0) >= 0
        return sorted(field for field, count in seen.items() if copied[field] >= _COPIED_SHARE * count)

    def _rows(self, examples: TokenizedExamples) -> Iterator[tuple[int, list[int], list[int]]]:
        """Where an example begins, its tokens, and these as words are the same with a space before them or without."""
        offsets = np.asarray(examples.offsets).tolist()
        for start, end in pairwise(offsets):
            tokens = np.asarray(examples.token_ids[start:end])
            yield start, tokens.tolist(), self._word[tokens].tolist()

    def _second_reading(self, row: Sequence[int], words: Sequence[int]) -> tuple[int, int] | None:
        """Where the last input stands for the second time, if it does: a newline and the input, twice."""
        try:
            end = len(row) - 1 - row[::-1].index(self._assistant)
            start = end - 1 - row[:end][::-1].index(self._user)
        except ValueError:
            return None
        once, rest = divmod(end - start - 1, 2)
        middle = start + 1 + once
        if rest or once < 2 or words[start + 1 : middle] != words[middle:end]:
            return None
        return middle + 1, end

    def _strings(self, row: Sequence[int], words: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """The strings of the answer that are in a field: the field, and the words."""
        answer = len(row) - 1 - row[::-1].index(self._assistant)
        field, value = None, list[int]()
        for place in range(answer + 1, len(row)):
            token = row[place]
            opened = self._opens.get(token, field if token in self._next_item else None)
            if opened is None and token not in self._closes and place + 1 < len(row):
                value.append(words[place])
                continue
            if field is not None and value:
                yield field, value
            field, value = opened, []


def _find(text: Sequence[int], part: list[int], start: int) -> int:
    """Where a part begins in a text from `start` on; -1 if nowhere."""
    size, first = len(part), part[0]
    for place in range(start, len(text) - size + 1):
        if text[place] == first and text[place : place + size] == part:
            return place
    return -1
