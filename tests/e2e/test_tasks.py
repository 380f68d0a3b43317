# SPDX-License-Identifier: Apache-2.0
"""Other kinds of data than extraction take the whole road too: detected, built, scored and answered."""

import json
import random
from pathlib import Path

import pytest

import open_autoglm
from tests.e2e.conftest import build_here, last_json, run_here

GOOD = ["很好", "非常满意", "服务周到", "值得推荐", "下次还来"]
BAD = ["太差了", "很失望", "不会再来", "又脏又吵", "态度恶劣"]


def reviews(folder: Path) -> Path:
    """A Chinese CSV in GB18030, with labels."""
    generator = random.Random(0)
    rows = ["内容,标签"]
    for number in range(240):
        good = number % 2 == 0
        phrases = generator.sample(GOOD if good else BAD, 2)
        rows.append(f"第{number}次入住，{phrases[0]}，{phrases[1]}。,{'好评' if good else '差评'}")
    file = folder / "reviews.csv"
    file.write_bytes("\n".join(rows).encode("gb18030"))
    return file


def essays(folder: Path) -> Path:
    """Plain text in paragraphs."""
    generator = random.Random(0)
    words = [
        "the",
        "a",
        "river",
        "mountain",
        "walked",
        "quietly",
        "under",
        "bright",
        "old",
        "stone",
        "she",
        "remembered",
    ]
    paragraphs = [" ".join(generator.choices(words, k=40)).capitalize() + "." for _ in range(120)]
    file = folder / "essays.txt"
    file.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return file


def questions(folder: Path) -> Path:
    """Questions on a passage, as nested JSON."""
    generator = random.Random(0)
    names, places = ["Anna", "Bo", "Chen", "Dana"], ["Oslo", "Wuhan", "Lima", "Accra"]
    entries = []
    for number in range(120):
        name, place = generator.choice(names), f"{generator.choice(places)} Street {number}"
        context = f"In {1900 + number} {name} moved to {place} and opened a small shop there near the old harbour."
        entry = {
            "id": str(number),
            "question": f"Where did {name} move?",
            "answers": [{"text": place, "answer_start": 0}],
        }
        entries.append({"title": str(number), "paragraphs": [{"context": context, "qas": [entry]}]})
    file = folder / "questions.json"
    file.write_text(json.dumps({"version": "1.1", "data": entries}), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("make", "steps", "task", "metric"),
    [
        (reviews, 60, "classification", "accuracy"),
        pytest.param(essays, 60, "plain_text", "perplexity", marks=pytest.mark.thorough),
        pytest.param(questions, 27, "question_answering", "f1", marks=pytest.mark.thorough),
    ],
)
def test_a_build_for_each_kind_of_task(tmp_path: Path, make: object, steps: int, task: str, metric: str) -> None:
    data = make(tmp_path)  # type: ignore[operator]
    out = tmp_path / "run"
    said = build_here(data, "--out", out, "--steps", str(steps), "--trials", "1")
    assert said["task"] == task
    value = said["metrics"][f"test_{metric}"]
    board = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    assert board["metric"] == metric
    with open_autoglm.LLM(out / "bundle") as llm:
        if task == "classification":
            baselines = {row["name"]: row["score"] for row in board["entries"] if row["kind"] == "baseline"}
            assert baselines["majority label"] <= 0.6
            assert baselines["TF-IDF + linear SVM"] == 1.0
            assert llm.task is not None
            assert set(llm.task.labels) == {"好评", "差评"}
            assert {llm.chat(text).text for text in ("很好，值得推荐", "anything at all")} <= {"好评", "差评"}
            assert value >= 0.9
        elif task == "plain_text":
            assert 1 < value < 60
            assert llm.generate(["The river"], max_tokens=5)[0].completion_tokens <= 5
        else:
            assert 0 <= value <= 1
            assert llm.chat("Bo moved to Lima.\n\nWhere did Bo move?", max_tokens=8).finish_reason in ("stop", "length")
    again = run_here("eval", out / "bundle", data, "--json")
    assert again.returncode == 0, again.stderr
    assert last_json(again.stdout)["metric"] == metric
