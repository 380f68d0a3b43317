# SPDX-License-Identifier: Apache-2.0
"""Extraction without a language model: the answer of the most similar training input, its values aligned."""

from __future__ import annotations

import difflib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from open_autoglm.data import Example
from open_autoglm.search.baselines.classifiers import nearest_answers
from open_autoglm.words import find_whole_words, split_words

Path = tuple[str | int, ...]


class TemplateMatcher:
    """Answers with the nearest training example's JSON.

    A string of it that is words of its input is replaced: by the longest value known at that place that the query
    holds, else by what stands in the query between the words that surround it in the neighbour's input.
    """

    def __init__(self, train: Sequence[Example]) -> None:
        self._inputs = [example.input_text for example in train]
        self._answers = [example.answer for example in train]
        self._values: dict[Path, set[str]] = defaultdict(set)
        for text, answer in zip(self._inputs, self._answers, strict=True):
            for path, value in _strings(json.loads(answer)):
                if next(find_whole_words(value, text), None) is not None:
                    self._values[_place(path)].add(value)

    def predict(self, queries: Sequence[str]) -> list[str]:
        """The answer to each query, as JSON."""
        from open_autoglm.data.answers import dump_answer

        found: list[str] = []
        for query, neighbour in zip(queries, nearest_answers(self._inputs, queries), strict=True):
            answer = json.loads(self._answers[neighbour])
            source = self._inputs[neighbour]
            for path, value in list(_strings(answer)):
                span = next(find_whole_words(value, source), None)
                if span is None or next(find_whole_words(value, query), None) is not None:
                    continue
                other = self._known(_place(path), query) or _aligned(source, span, query)
                if other:
                    _replace(answer, path, other)
            found.append(dump_answer(answer))
        return found

    def _known(self, place: Path, query: str) -> str | None:
        words = split_words(query)
        known = self._values[place]
        for size in range(len(words), 0, -1):
            for start in range(len(words) - size + 1):
                run = "".join(words[start : start + size])
                if run in known:
                    return run
        return None


def _aligned(source: str, span: tuple[int, int], query: str) -> str | None:
    """What stands in the query where `source[span]` stands in its own text, by the words around it."""
    before, after = split_words(source[: span[0]]), split_words(source[span[1] :])
    ours, theirs = split_words(query), [*before, "\0", *after]
    blocks = difflib.SequenceMatcher(a=theirs, b=ours, autojunk=False).get_matching_blocks()
    start, end = 0, len(ours)
    for block in blocks:
        if not block.size:
            continue
        if block.a + block.size <= len(before):
            start = block.b + block.size
        elif block.a > len(before):
            end = block.b
            break
    text = "".join(ours[start:end]).strip()
    return text or None


def _strings(value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _strings(inner, (*path, place))
    elif isinstance(value, str):
        yield path, value


def _place(path: Path) -> Path:
    return tuple("[]" if isinstance(step, int) else step for step in path)


def _replace(answer: Any, path: Path, value: str) -> None:
    for step in path[:-1]:
        answer = answer[step]
    answer[path[-1]] = value
