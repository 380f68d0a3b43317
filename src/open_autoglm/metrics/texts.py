# SPDX-License-Identifier: Apache-2.0
"""How much two texts have in common: the F1 of question answering, and ROUGE."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Final

_ARTICLES: Final = frozenset(("a", "an", "the"))


def token_f1(answer: str, reference: str) -> float:
    """Overlap of tokens without English articles, as in SQuAD; Chinese characters count one by one as in CMRC 2018.

    Source: Rajpurkar et al. 2016; Cui et al. 2019.
    """
    ours, theirs = Counter(_without_articles(answer)), Counter(_without_articles(reference))
    common = sum((ours & theirs).values())
    if not common:
        return float(ours == theirs)
    return 2 * common / (sum(ours.values()) + sum(theirs.values()))


def is_same_answer(answer: str, reference: str) -> bool:
    """Whether two answers are the same but for case, punctuation, spaces and English articles, as in SQuAD."""
    return "".join(_without_articles(answer)) == "".join(_without_articles(reference))


def rouge_n(answer: str, reference: str, size: int) -> float:
    """F1 of the runs of `size` tokens that both texts have. Source: Lin 2004, ROUGE-N with beta 1."""
    ours, theirs = (_runs(tokens(text), size) for text in (answer, reference))
    total = sum(ours.values()) + sum(theirs.values())
    if not ours or not theirs:
        return float(ours == theirs and answer.strip() == reference.strip())
    return 2 * sum((ours & theirs).values()) / total


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of tokens. Source: Lin 2004, ROUGE-L with beta 1."""
    ours, theirs = tokens(answer), tokens(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    row = [0] * (len(theirs) + 1)
    for token in ours:
        diagonal = 0
        for column, other in enumerate(theirs, start=1):
            above = row[column]
            row[column] = diagonal + 1 if token == other else max(above, row[column - 1])
            diagonal = above
    return 2 * row[-1] / (len(ours) + len(theirs))


def tokens(text: str) -> list[str]:
    """Lower-case words without punctuation; each Chinese, Japanese or Korean character is a token of its own."""
    found: list[str] = []
    word = ""
    for character in unicodedata.normalize("NFKC", text).lower():
        wide = unicodedata.east_asian_width(character) == "W"
        if character.isalnum() and not wide:
            word += character
            continue
        if word:
            found.append(word)
            word = ""
        if wide and character.isalnum():
            found.append(character)
    return [*found, word] if word else found


def _runs(words: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _without_articles(text: str) -> list[str]:
    return [token for token in tokens(text) if token not in _ARTICLES]
