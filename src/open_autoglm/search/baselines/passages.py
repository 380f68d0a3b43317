# SPDX-License-Identifier: Apache-2.0
"""Summaries and answers taken out of a passage without a language model: its first sentence, or BM25 and a span."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

from open_autoglm.metrics import token_f1
from open_autoglm.words import split_words

_SENTENCE: Final = re.compile(r"[^。！？!?\n.]*(?:\.(?!\s|$)[^。！？!?\n.]*)*[。！？!?\n.]?")
_SATURATION: Final = 1.2
_LENGTH_WEIGHT: Final = 0.75
_TUNED_ON: Final = 60
_INSIDE_PENALTY: Final = 2.0


def first_sentence(text: str) -> str:
    """The first sentence that has words in it, or the text where it has none."""
    return next(iter(_sentences(text)), text.strip())


class SpanFinder:
    """Answers a question about a passage that stands before it, two line breaks between.

    pairs: inputs and answers to learn from how long answers are: of some lengths around their median, the one that
    overlaps most with the answers.
    Source of the ranking: Robertson and Walker 1994 (BM25), over the sentences of the passage.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        lengths = [len(_words(answer)) for _, answer in pairs] or [1]
        quantiles = statistics.quantiles(lengths, n=4) if len(lengths) > 1 else [float(lengths[0])]
        choices = sorted({max(1, round(length)) for length in quantiles})
        step = max(1, len(pairs) // _TUNED_ON)
        sample = pairs[::step][:_TUNED_ON]

        def overlap(length: int) -> float:
            return sum(token_f1(_span(text, length), answer) for text, answer in sample)

        self._length = max(choices, key=overlap)

    def answer(self, text: str) -> str:
        """The span that answers the question at the end of a text."""
        return _span(text, self._length)


def _span(text: str, length: int) -> str:
    passage, _, question = text.rpartition("\n\n")
    sentences = _sentences(passage or text)
    asked = set(_words(question))
    if not sentences:
        return ""
    documents = [_words(sentence) for sentence in sentences]
    weights = _rarity(documents)
    best = max(range(len(sentences)), key=lambda place: (_bm25(documents, place, asked, weights), -place))
    return _window(sentences[best], asked, weights, length)


def _window(sentence: str, asked: set[str], weights: dict[str, float], length: int) -> str:
    """The run of `length` words nearest to the question's words, and with few of them inside."""
    chunks = split_words(sentence)
    places = [place for place, chunk in enumerate(chunks) if chunk.strip() and any(c.isalnum() for c in chunk)]
    words = [chunks[place].lower() for place in places]
    if len(words) <= length:
        return sentence.strip()
    known = [(place, weights.get(word, 1.0)) for place, word in enumerate(words) if word in asked]
    best, found = -math.inf, 0
    for start in range(len(words) - length + 1):
        end = start + length
        score = 0.0
        for place, weight in known:
            if start <= place < end:
                score -= _INSIDE_PENALTY * weight
            else:
                score += weight / (start - place if place < start else place - end + 1)
        if score > best:
            best, found = score, start
    return "".join(chunks[places[found] : places[found + length - 1] + 1]).strip()


def _bm25(documents: Sequence[Sequence[str]], place: int, asked: set[str], weights: dict[str, float]) -> float:
    mean = sum(map(len, documents)) / len(documents)
    counts = Counter(documents[place])
    size = _SATURATION * (1 - _LENGTH_WEIGHT + _LENGTH_WEIGHT * len(documents[place]) / max(1.0, mean))
    return sum(weights[word] * counts[word] * (_SATURATION + 1) / (counts[word] + size) for word in asked & set(counts))


def _rarity(documents: Sequence[Sequence[str]]) -> dict[str, float]:
    seen = Counter(word for document in documents for word in set(document))
    total = len(documents)
    return {word: math.log(1 + (total - count + 0.5) / (count + 0.5)) for word, count in seen.items()}


def _sentences(text: str) -> list[str]:
    found = (match.group().strip() for match in _SENTENCE.finditer(text))
    return [sentence for sentence in found if any(character.isalnum() for character in sentence)]


def _words(text: str) -> list[str]:
    return [word.lower() for word in split_words(text) if any(character.isalnum() for character in word)]
