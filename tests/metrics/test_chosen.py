# SPDX-License-Identifier: Apache-2.0
"""Metrics of the user's own: functions, rules, names, and what is refused."""

import json
from pathlib import Path

import pytest

import open_autoglm
from open_autoglm.errors import ConfigurationError
from open_autoglm.evaluate import score_texts, with_metric
from open_autoglm.metrics import ChosenMetric, choose_metric
from open_autoglm.metrics.rules import read_rules
from open_autoglm.task import Task, TaskKind


def half_right(answers: list[str], references: list[str]) -> list[float]:
    return [0.5 * (a == b) for a, b in zip(answers, references, strict=True)]


def worst(answers: list[str], references: list[str]) -> float:
    return float(min(len(answer) for answer in answers))


def test_a_registered_function_decides_and_survives_json() -> None:
    open_autoglm.register_metric("half", half_right)
    chosen = ChosenMetric.from_dict(json.loads(json.dumps(choose_metric("half").to_dict())))
    task = with_metric(Task(TaskKind.CLASSIFICATION), chosen)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    found = score_texts(task, ["a", "b"], ["a", "c"], chosen)
    assert found.metric == "half"
    assert found.value == 0.25
    assert found.metrics["accuracy"] == 0.5
    assert found.interval == (0.0, 0.5)


def test_a_function_may_give_one_number_and_may_fall() -> None:
    open_autoglm.register_metric("worst", worst, higher_is_better=False)
    chosen = choose_metric("worst")
    task = with_metric(Task(TaskKind.CLASSIFICATION), chosen)
    assert not task.higher_is_better
    assert score_texts(task, ["aa", "b"], ["a", "c"], chosen).value == 1.0


def test_a_function_of_a_file_is_found_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def mine(answers, references):\n    return [1.0] * len(answers)\n")
    chosen = choose_metric(f"{file}:mine")
    samples = chosen.samples(["a"], ["b"])
    assert samples is not None
    assert samples.value == 1.0
    file.write_text("def mine(answers, references):\n    return 0\n")
    with pytest.raises(ConfigurationError, match="was changed"):
        chosen.samples(["a"], ["b"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", "ZeroDivisionError"),
        ("return [1.0]", "1 numbers for 2 answers"),
        ("return float('nan')", "not a finite number"),
        ("return 'good'", "failed"),
    ],
)
def test_what_a_function_gets_wrong_is_said(body: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(f"def bad(answers, references):\n    {body}\n")
    with pytest.raises(ConfigurationError, match=words):
        choose_metric(f"{file}:bad").samples(["a", "b"], ["b", "a"])


def test_names_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="top level"):
        open_autoglm.register_metric("mine", lambda answers, references: 1.0)
    with pytest.raises(ConfigurationError, match="cannot name a metric"):
        open_autoglm.register_metric("accuracy", half_right)
    with pytest.raises(ConfigurationError, match="did you mean 'macro_f1'"):
        choose_metric("macro_f2")
    with pytest.raises(ConfigurationError, match="no file"):
        choose_metric("nowhere.py:fn")
    with pytest.raises(ConfigurationError, match="has no metric 'rouge_l'"):
        with_metric(Task(TaskKind.CLASSIFICATION), choose_metric("rouge_l"))
    with pytest.raises(ConfigurationError, match="how likely"):
        with_metric(Task(TaskKind.DIALOGUE), ChosenMetric("mine", file="x.py", function="mine"))


def test_rules_weigh_fields(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(
        """
metric: order_score
rules:
  - {field: intent, weight: 2}
  - {field: slots.price, compare: number, tolerance: 0.01}
  - {field: slots.name, compare: ignore_case}
  - {field: slots.note, compare: present}
"""
    )
    chosen = choose_metric(str(file))
    assert chosen.name == "order_score"
    task = with_metric(Task(TaskKind.EXTRACTION), chosen)
    again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    reference = json.dumps({"intent": "buy", "slots": {"price": 3, "name": "Ann", "note": "x"}})
    answers = [
        reference,
        json.dumps({"intent": "buy", "slots": {"price": "3.005", "name": "ANN "}}),
        json.dumps({"intent": "sell", "slots": {"price": 4, "name": "Bob", "note": "y"}}),
        "not json",
    ]
    values = [score_texts(again, [answer], [reference]).value for answer in answers]
    assert values == pytest.approx([1.0, 4 / 5, 1 / 5, 0.0])


def test_a_star_stands_for_every_field_and_plain_answers_have_one(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text("metric: loose\nrules:\n  - {field: '*', compare: same_words}\n")
    rules = read_rules(file)
    assert rules.score('{"a": "X y!", "b": "z"}', '{"a": "x, y", "c": "z"}') == pytest.approx(1 / 3)
    assert rules.score("New  York", "new york.") == 1.0


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("metric: a\nrules:\n  - {fild: x}", 3, "a 'field'"),
        ("metric: a\nrules:\n  - {field: x, compare: ignorecase}", 3, "did you mean"),
        ("metric: a\nrules:\n  - {field: x, weight: -1}", 3, "at least 0"),
        ("metric: a\nrules: []", 2, "list of 1"),
        ("metric: 3x\nrules: [{field: x}]", 1, "name"),
        ("metrik: a", 1, "did you mean 'metric'"),
    ],
)
def test_faults_of_rules_name_the_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=f"line {line}: .*{words}"):
        choose_metric(str(file))
