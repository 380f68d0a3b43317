# SPDX-License-Identifier: Apache-2.0
"""Baselines do what their names say, for each kind of task."""

import json
import math

import numpy as np
import pytest

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, TokenizedExamples
from open_autoglm.search.baselines import score_baselines
from open_autoglm.search.baselines.passages import SpanFinder, first_sentence
from open_autoglm.search.baselines.templates import TemplateMatcher
from open_autoglm.search.baselines.token_pairs import nats_of_pairs
from open_autoglm.task import Task, TaskKind


def example(text: str, answer: str) -> Example:
    return Example((Message(Role.USER, text), Message(Role.ASSISTANT, answer)))


def test_classifiers_learn_chinese() -> None:
    train = [example(f"我很喜欢 {i}", "好") for i in range(20)] + [example(f"太糟糕了 {i}", "坏") for i in range(10)]
    valid = [example("喜欢", "好"), example("糟糕", "坏")]
    rows = {row.name: row for row in score_baselines(Task(TaskKind.CLASSIFICATION, labels=("好", "坏")), train, valid)}
    scores = {name: row.score for name, row in rows.items()}
    assert scores == {"majority label": 0.5, "nearest neighbour": 1.0, "TF-IDF + linear SVM": 1.0}
    assert rows["majority label"].interval == (0.0, 1.0)
    one_label = [example(str(i), "好") for i in range(5)]
    assert [row.name for row in score_baselines(Task(TaskKind.CLASSIFICATION), one_label, valid)] == ["majority label"]


def test_a_template_takes_the_values_of_the_query() -> None:
    train = [
        example("play hello by adele", json.dumps({"intent": "play", "slots": {"song": "hello", "artist": "adele"}})),
        example("book a table in paris", json.dumps({"intent": "book", "slots": {"city": "paris"}})),
        example(
            "play yellow by coldplay", json.dumps({"intent": "play", "slots": {"song": "yellow", "artist": "coldplay"}})
        ),
    ]
    found = TemplateMatcher(train).predict(
        ["play bad guy by billie eilish", "book a table in new york", "play hello by coldplay"]
    )
    assert json.loads(found[0]) == {"intent": "play", "slots": {"song": "bad guy", "artist": "billie eilish"}}
    assert json.loads(found[1]) == {"intent": "book", "slots": {"city": "new york"}}
    assert json.loads(found[2]) == {"intent": "play", "slots": {"song": "hello", "artist": "coldplay"}}
    rows = list(score_baselines(Task(TaskKind.EXTRACTION), train, train[:2]))
    assert [row.name for row in rows] == ["most frequent answer", "nearest neighbour's template"]
    assert rows[1].score == 1.0


def test_the_first_sentence_is_where_it_ends() -> None:
    assert first_sentence("\n We use 3.5 layers. Then more.") == "We use 3.5 layers."
    assert first_sentence("我们提出方法。结果很好。") == "我们提出方法。"
    assert first_sentence("") == ""


def test_spans_stand_near_the_words_of_the_question() -> None:
    passage = "The tower was built in 1889. It stands in Paris near the Seine. Many people visit it."
    text = f"{passage}\n\nWhere does it stand near?"
    pairs = [("Rome lies in Italy. It is old.\n\nWhere lies Rome?", "Italy")] * 4
    finder = SpanFinder(pairs)
    assert "1889" not in finder.answer(text)
    chinese = "北京是中国的首都。上海是最大的城市。\n\n最大的城市是哪里？"
    assert SpanFinder([("天空是蓝色。\n\n天空是什么？", "蓝色")] * 4).answer(chinese) in "上海是最大的城市"
    assert finder.answer("") == ""
    rows = list(
        score_baselines(Task(TaskKind.QUESTION_ANSWERING), [example(*pair) for pair in pairs], [example(*pairs[0])])
    )
    assert [row.name for row in rows] == ["BM25 + span"]


def tokens(rows: list[list[int]]) -> TokenizedExamples:
    flat = np.concatenate([np.array(row, dtype=np.int32) for row in rows])
    return TokenizedExamples(flat, np.ones(len(flat), dtype=bool), np.cumsum([0, *map(len, rows)]))


def test_token_pairs_cost_what_counting_says() -> None:
    train = tokens([[0, 1, 2]] * 10 + [[0, 3]] * 10)
    nats, learnt = nats_of_pairs(train, tokens([[0, 1], [0, 3], [1, 2, 0]]))
    assert learnt.tolist() == [1, 1, 2]
    # 20 pairs begin with 0, of two kinds; 1, 2 and 3 follow one kind of token each.
    lower = 0.999 / 3 + 0.001 / 4
    expected = (10 - 0.75) / 20 + 0.75 * 2 / 20 * lower
    assert nats[:2] == pytest.approx([-math.log(expected)] * 2)
    everything = nats_of_pairs(train, tokens([[0, token] for token in range(4)]))[0]
    assert np.exp(-everything).sum() == pytest.approx(1.0)
    row = next(
        iter(score_baselines(Task(TaskKind.DIALOGUE), [example("a", "b")], [example("a", "b")], tokens=(train, train)))
    )
    assert row.score is not None
    assert 1 < row.score < 4
