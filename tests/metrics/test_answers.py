# SPDX-License-Identifier: Apache-2.0
"""Scores against values worked out by hand, scikit-learn, rouge-score and seqeval."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from seqeval.metrics import f1_score as span_f1
from sklearn.metrics import f1_score

from open_autoglm.metrics import macro_f1, perplexity, rouge_l, rouge_n, score_answers, token_f1
from open_autoglm.task import Task, TaskKind

LABELS = st.lists(st.sampled_from("abc"), min_size=1, max_size=30)


@given(st.data(), LABELS)
def test_macro_f1_is_scikit_learns_over_the_labels_that_occur(data: st.DataObject, references: list[str]) -> None:
    answers = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(references), max_size=len(references)))
    labels = sorted(set(references))
    expected = f1_score(references, answers, labels=labels, average="macro", zero_division=0)
    assert macro_f1(answers, references) == pytest.approx(expected)


def test_extraction_compares_objects_not_strings() -> None:
    task = Task(TaskKind.EXTRACTION)
    references = [json.dumps({"intent": "play", "slots": {"artist": "x", "year": "1990"}})] * 4
    answers = [
        '{"slots":{"year":"1990","artist":"x"},"intent":"play"}',
        '{"intent": "play", "slots": {"artist": "y", "year": "1990"}}',
        '{"intent": "play", "slots": {}}',
        "not json",
    ]
    scores = score_answers(task, answers, references)
    assert scores["exact_match"] == 0.25
    assert scores["valid_json"] == 0.75
    assert scores["field_f1"] == pytest.approx(2 * (3 + 2 + 1) / (3 + 3 + 1 + 12))


def test_token_f1_as_squad_counts_it() -> None:
    assert token_f1("The big cat sat!", "cat sat here") == pytest.approx(2 * 2 / (3 + 3))  # articles do not count
    assert token_f1("北京市", "北京") == pytest.approx(0.8)
    assert token_f1("", "") == 1.0
    assert token_f1("dog", "cat") == 0.0


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police kill the gunman") == pytest.approx(0.5)


def test_perplexity_of_a_uniform_guess_is_the_number_of_choices() -> None:
    assert perplexity(10 * math.log(8), 10) == pytest.approx(8)


WORDS = st.lists(st.sampled_from(["police", "killed", "the", "gunman", "in", "1990", "Paris"]), max_size=9)


@given(WORDS, WORDS)
def test_rouge_is_rouge_scores_on_english(ours: list[str], theirs: list[str]) -> None:
    answer, reference = " ".join(ours), " ".join(theirs)
    expected = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, answer)
    if len(ours) > 1 and len(theirs) > 1:
        assert rouge_n(answer, reference, 1) == pytest.approx(expected["rouge1"].fmeasure)
        assert rouge_n(answer, reference, 2) == pytest.approx(expected["rouge2"].fmeasure)
        assert rouge_l(answer, reference) == pytest.approx(expected["rougeL"].fmeasure)


def test_rouge_counts_chinese_by_characters() -> None:
    assert rouge_n("北京大学", "北大", 1) == pytest.approx(2 * 2 / 6)
    assert rouge_n("北京大学", "北京", 2) == pytest.approx(2 * 1 / 4)


SLOT_TASK = Task(
    TaskKind.EXTRACTION,
    answer_schema={
        "type": "object",
        "properties": {
            "intent": {"type": "string", "enum": ["play", "book"]},
            "slots": {"type": "object", "properties": {"artist": {"type": "string"}}},
        },
    },
)
SLOTS = st.dictionaries(st.sampled_from(["artist", "city", "year"]), st.sampled_from(["x", "y z"]), max_size=3)


@given(st.lists(st.tuples(SLOTS, SLOTS), min_size=1, max_size=6))
def test_slot_f1_is_seqevals(pairs: list[tuple[dict[str, str], dict[str, str]]]) -> None:
    """Each value of each slot is laid out at a place of its own, so that spans are equal when values are."""

    def tags(slots: dict[str, str]) -> list[str]:
        return [
            f"B-{name}" if slots.get(name) == value else "O"
            for name in ("artist", "city", "year")
            for value in ("x", "y z")
        ]

    references = [json.dumps({"intent": "play", "slots": wanted}) for _, wanted in pairs]
    answers = [json.dumps({"intent": "book", "slots": found}) for found, _ in pairs]
    scores = score_answers(SLOT_TASK, answers, references)
    expected = span_f1([tags(wanted) for _, wanted in pairs], [tags(found) for found, _ in pairs], zero_division=0)
    assert scores["slot_f1"] == pytest.approx(expected)
    assert scores["intent_accuracy"] == 0.0


def test_closed_fields_at_the_top_are_scored_apart() -> None:
    references = ['{"intent": "play", "slots": {"artist": "x"}}'] * 3
    answers = ['{"intent": "play", "slots": {}}', '{"intent": "book", "slots": {"artist": "x"}}', "no"]
    scores = score_answers(SLOT_TASK, answers, references)
    assert scores["intent_accuracy"] == pytest.approx(1 / 3)
    assert scores["slot_f1"] == pytest.approx(2 * 1 / (1 + 3))
    assert "slot_f1" not in score_answers(Task(TaskKind.EXTRACTION), answers, references)


def test_answers_to_questions_are_compared_as_squad_does() -> None:
    scores = score_answers(
        Task(TaskKind.QUESTION_ANSWERING), ["the Eiffel Tower!", "in Paris"], ["Eiffel tower", "Paris"]
    )
    assert scores["exact_match"] == 0.5
    assert scores["f1"] == pytest.approx((1 + 2 * 1 / 3) / 2)


@given(LABELS)
def test_accuracy_is_the_share_of_equal_labels(labels: list[str]) -> None:
    answers = [*labels[1:], "a"]
    expected = sum(a == b for a, b in zip(answers, labels, strict=True)) / len(labels)
    assert score_answers(Task(TaskKind.CLASSIFICATION), answers, labels)["accuracy"] == pytest.approx(expected)
