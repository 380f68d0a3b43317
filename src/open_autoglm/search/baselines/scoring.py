# SPDX-License-Identifier: Apache-2.0
"""Which baselines a kind of task has, and their rows of the leaderboard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from open_autoglm.data import Example, TokenizedExamples
from open_autoglm.metrics import answer_samples, confidence_interval
from open_autoglm.search.leaderboard import Entry
from open_autoglm.task import Task, TaskKind

_MOST_ROWS: Final = 200_000
"""Training rows that a baseline sees: more make it slower than the model it is compared with, and hardly better."""

Score = tuple[float, tuple[float, float] | None]
"""The deciding metric and its confidence interval."""

Scorer = Callable[[Sequence[str], Sequence[str]], Score]
"""Takes answers and references."""

Answers = Iterator[tuple[str, float, list[str]]]
"""Baselines as they get ready: name, seconds of fitting, answers to the validation examples."""


def score_baselines(
    task: Task,
    train: Sequence[Example],
    valid: Sequence[Example],
    *,
    score: Scorer | None = None,
    tokens: tuple[TokenizedExamples, TokenizedExamples] | None = None,
) -> Iterator[Entry]:
    """Rows for the task's baselines, one after the other as they are ready.

    Classification and tables: the most frequent label, the nearest neighbour, TF-IDF with a linear SVM. Extraction: the
    most frequent answer, the nearest neighbour's answer with its values aligned to the input. Summarisation: the first
    sentence. Question answering: the span that lies nearest to the question's words in the sentence that BM25 finds.
    Others: a model of token pairs. score: the deciding metric of answers, the task's own if not given. tokens: the
    training and the validation split, for models of tokens.
    """
    if not train or not valid:
        return
    step = -(-len(train) // _MOST_ROWS)
    note = f" (every {step}th training row)" if step > 1 else ""
    seen = train[::step] if step > 1 else train
    references = [example.answer for example in valid]
    scorer = score or _scorer(task)
    if task.kind in (TaskKind.CLASSIFICATION, TaskKind.TABULAR):
        found = _of_labels(seen, valid)
    elif task.kind is TaskKind.EXTRACTION:
        found = _of_fields(seen, valid)
    elif task.kind is TaskKind.SUMMARISATION:
        found = _of_summaries(valid)
    elif task.kind is TaskKind.QUESTION_ANSWERING:
        found = _of_passages(seen, valid)
    else:
        if tokens is not None and task.metric == "perplexity":
            yield _token_pairs(*tokens)
        return
    mark = time.monotonic()
    for name, fitting, answers in found:
        spent = time.monotonic() - mark
        value, interval = scorer(answers, references)
        yield Entry(
            name=name + note if fitting else name,
            kind="baseline",
            score=value,
            interval=interval,
            seconds=round(fitting, 3),
            latency_ms=round(1000 * max(0.0, spent - fitting) / len(valid), 4),
        )
        mark = time.monotonic()


def _scorer(task: Task) -> Scorer:
    def score(answers: Sequence[str], references: Sequence[str]) -> Score:
        samples = answer_samples(task, answers, references)[task.metric]
        return samples.value, confidence_interval(samples)

    return score


def _of_labels(train: Sequence[Example], valid: Sequence[Example]) -> Answers:
    from open_autoglm.search.baselines.classifiers import TunedClassifier, nearest_answers

    labels = [example.answer for example in train]
    yield "majority label", 0.0, [_most_frequent(labels)] * len(valid)
    if len(set(labels)) < 2:
        return
    texts, queries = [e.input_text for e in train], [e.input_text for e in valid]
    started = time.monotonic()
    places = nearest_answers(texts, queries)
    fitting = time.monotonic() - started
    yield "nearest neighbour", fitting, [labels[place] for place in places]
    started = time.monotonic()
    classifier = TunedClassifier(texts, labels, queries, [e.answer for e in valid])
    fitting = time.monotonic() - started
    yield "TF-IDF + linear SVM", fitting, classifier.predict(queries)


def _of_fields(train: Sequence[Example], valid: Sequence[Example]) -> Answers:
    from open_autoglm.search.baselines.templates import TemplateMatcher

    yield "most frequent answer", 0.0, [_most_frequent([example.answer for example in train])] * len(valid)
    started = time.monotonic()
    matcher = TemplateMatcher(train)
    fitting = time.monotonic() - started
    yield "nearest neighbour's template", fitting, matcher.predict([example.input_text for example in valid])


def _of_summaries(valid: Sequence[Example]) -> Answers:
    from open_autoglm.search.baselines.passages import first_sentence

    yield "first sentence (lead-1)", 0.0, [first_sentence(example.input_text) for example in valid]


def _of_passages(train: Sequence[Example], valid: Sequence[Example]) -> Answers:
    from open_autoglm.search.baselines.passages import SpanFinder

    started = time.monotonic()
    finder = SpanFinder([(example.input_text, example.answer) for example in train])
    fitting = time.monotonic() - started
    yield "BM25 + span", fitting, [finder.answer(example.input_text) for example in valid]


def _token_pairs(train: TokenizedExamples, valid: TokenizedExamples) -> Entry:
    from open_autoglm.metrics import perplexity_samples
    from open_autoglm.search.baselines.token_pairs import nats_of_pairs

    started = time.monotonic()
    nats, learnt = nats_of_pairs(train, valid)
    samples = perplexity_samples(nats, learnt, learnt)["perplexity"]
    return Entry(
        name="token pairs (Kneser-Ney)",
        kind="baseline",
        score=samples.value,
        interval=confidence_interval(samples),
        seconds=round(time.monotonic() - started, 3),
    )


def _most_frequent(answers: Sequence[str]) -> str:
    return Counter(answers).most_common(1)[0][0]
