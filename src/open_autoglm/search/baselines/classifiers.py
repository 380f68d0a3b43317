# SPDX-License-Identifier: Apache-2.0
"""Text classifiers without a language model: TF-IDF with a linear SVM, tuned, and the nearest neighbour."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final

_COSTS: Final = (1.0, 0.3, 3.0, 10.0)
_MOST_FEATURES: Final = 300_000
_CHEAP: Final = 60_000_000
"""Characters times labels up to which everything is tried; ten times that, the first of each; beyond, one model."""

_QUERIES_AT_ONCE: Final = 256
_SPACED_WORDS: Final = r"(?u)\w+"


class TunedClassifier:
    """TF-IDF features of word and character runs under a linear SVM, the best of a few on the validation split.

    texts, labels: to learn from. queries, answers: to choose by. How many are tried depends on the amount of data
    alone, so that the result can be repeated: first the features, then the SVM's cost with the best of them.
    """

    def __init__(
        self, texts: Sequence[str], labels: Sequence[str], queries: Sequence[str], answers: Sequence[str]
    ) -> None:
        work = sum(map(len, texts)) * len(set(labels))
        families = _FEATURES if work <= 10 * _CHEAP else _FEATURES[:1]
        costs = _COSTS if work <= _CHEAP else _COSTS[: 2 if work <= 10 * _CHEAP else 1]
        self._best, kept = -1.0, (None, None)
        for make in families:
            features = make()
            matrices = features.fit_transform(list(texts)), features.transform(list(queries))
            if self._try(features, matrices, labels, answers, costs[0]):
                kept = matrices
        for cost in costs[1:]:
            self._try(self._features, kept, labels, answers, cost)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The label of each text."""
        return [str(label) for label in self._model.predict(self._features.transform(list(texts)))]

    def _try(
        self, features: Any, matrices: tuple[Any, Any], labels: Sequence[str], answers: Sequence[str], cost: float
    ) -> bool:
        """Keep an SVM if none before was as good. matrices: the features of what is learnt from, and of the queries."""
        from sklearn.svm import LinearSVC

        model = LinearSVC(C=cost, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an SVM that has not converged is scored as it is
            model.fit(matrices[0], list(labels))
        right = sum(a == b for a, b in zip(model.predict(matrices[1]), answers, strict=True)) / max(1, len(answers))
        if right <= self._best:
            return False
        self._best, self._features, self._model = right, features, model
        return True


def nearest_answers(texts: Sequence[str], queries: Sequence[str]) -> list[int]:
    """For each query the place of the text with the most runs of two to four characters in common, by TF-IDF.

    Of equals the first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=_MOST_FEATURES)
    known = vectorizer.fit_transform(list(texts)).T.tocsr()
    places: list[int] = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        likeness = vectorizer.transform(list(queries[start : start + _QUERIES_AT_ONCE])) @ known
        places.extend(int(place) for place in likeness.toarray().argmax(axis=1))
    return places


def _words_and_characters() -> Any:
    """Pairs of words where words are spaced, and short runs of characters, which Chinese needs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=_SPACED_WORDS, max_features=_MOST_FEATURES
        ),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, max_features=_MOST_FEATURES),
    )


def _characters() -> Any:
    """Runs of one to three characters across words: for texts without spaces."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True, max_features=_MOST_FEATURES)


def _long_characters() -> Any:
    """Words and pairs, and longer runs of characters, which forgive endings and misspellings."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(
            ngram_range=(1, 2), sublinear_tf=True, token_pattern=_SPACED_WORDS, max_features=_MOST_FEATURES
        ),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=_MOST_FEATURES),
    )


_FEATURES: Final = (_words_and_characters, _characters, _long_characters)
