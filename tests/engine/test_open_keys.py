# SPDX-License-Identifier: Apache-2.0
"""Answers whose keys are not all known: unseen ones can be written, and whatever is written fits the schema."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.template import encode_text, stop_token_ids
from open_autoglm.data.example import Example
from open_autoglm.data.schema import infer_answer_schema
from open_autoglm.engine.guides import GuideCompiler
from open_autoglm.engine.task_grammar import TaskGrammar
from open_autoglm.task import Task, TaskKind
from tests.engine.test_task_grammar import dump, takes, wander

TEXT = "play the song yesterday by the beatles"
INTEGERS: dict[str, Any] = {
    "type": "object",
    "properties": {"count": {"type": "integer"}, "mood": {"type": "string", "enum": ["a", "b"]}},
    "required": [],
    "additionalProperties": {"type": "integer"},
    "x-free-order": True,
}
ORDERED: dict[str, Any] = {**INTEGERS, "required": ["count"]}
ORDERED.pop("x-free-order")
REQUIRED: dict[str, Any] = {**INTEGERS, "required": ["mood"]}
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"type": "string", "enum": ["x", "y"]}},
    "required": ["kind"],
    "additionalProperties": {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": {"type": "string", "x-copied": True},
    },
}
BARE: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": {"type": "boolean"}}
MANY: dict[str, Any] = {
    "type": "object",
    "properties": {f"key {n}": {"type": "integer"} for n in range(150)},
    "required": [],
    "additionalProperties": {"type": "integer"},
    "x-free-order": True,
}
SCHEMAS = {"free": INTEGERS, "ordered": ORDERED, "required": REQUIRED, "nested": NESTED, "bare": BARE, "many": MANY}


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GuideCompiler:
    return GuideCompiler(tokenizer, 416, stop_token_ids(tokenizer))


def task_of(schema: dict[str, Any]) -> Task:
    return Task(TaskKind.EXTRACTION, answer_schema=schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_the_guide_lets_through_fits_the_schema(
    tokenizer: Tokenizer, compiler: GuideCompiler, name: str
) -> None:
    schema = SCHEMAS[name]
    checker = Draft202012Validator(schema)
    unseen = done = 0
    for seed in range(25):
        answer = wander(compiler.compile_task(task_of(schema), TEXT), tokenizer, seed, limit=3000)
        if answer is None:
            continue
        done += 1
        pairs = json.loads(answer, object_pairs_hook=list)
        checker.validate(json.loads(answer))
        known = [key for key, _ in pairs if key in schema["properties"]]
        assert len(known) == len(set(known)) or len(schema["properties"]) > 64
        unseen += any(key not in schema["properties"] for key, _ in pairs)
    assert done > 10
    assert unseen > 0


keys = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(keys, st.integers(-(10**9), 10**9), max_size=6),
    st.sampled_from(["free", "bare", "nested", "ordered"]),
)
def test_unseen_keys_are_taken(tokenizer: Tokenizer, compiler: GuideCompiler, found: dict[str, int], name: str) -> None:
    schema = SCHEMAS[name]
    unseen = {key: value for key, value in found.items() if key not in schema["properties"]}
    answer: dict[str, Any] = {
        "free": {**unseen, "count": 3},
        "bare": {key: value > 0 for key, value in unseen.items()},
        "nested": {"kind": "y", **{key: {"n": value, key + "!": "the song"} for key, value in unseen.items()}},
        "ordered": {"count": 1, "mood": "a", **unseen},
    }[name]
    Draft202012Validator(schema).validate(answer)
    assert takes(compiler.compile_task(task_of(schema), TEXT), encode_text(dump(answer), tokenizer))


@pytest.mark.parametrize(
    ("name", "answer", "is_right"),
    [
        ("free", {"new": 1, "count": 2, "other": 3}, True),
        ("free", {"mood": 1}, False),
        ("free", {"count": "a"}, False),
        ("free", {"new": "a"}, False),
        ("free", {"": 1}, False),
        ("free", {"k" * 64: 1}, True),
        ("free", {"k" * 65: 1}, False),
        ("free", {f"n{n}": n for n in range(32)}, True),
        ("free", {f"n{n}": n for n in range(33)}, False),
        ("free", {'quote " and \\ and\nline': 1}, True),
        ("ordered", {"new": 1}, False),
        ("ordered", {"count": 1, "new": 1}, True),
        ("ordered", {"new": 1, "count": 1}, False),
        ("required", {"new": 1}, False),
        ("required", {"new": 1, "mood": "b"}, True),
        ("nested", {"kind": "x", "a": {"n": 1, "b": "the song"}}, True),
        ("nested", {"kind": "x", "a": {"n": 1, "b": "no such words"}}, False),
        ("nested", {"kind": "x", "a": 1}, False),
        ("bare", {}, True),
        ("many", {"key 149": 1, "key 3": 2, "unseen": 3}, True),
        ("many", {"key 3": 1, "key 3 ": 2}, True),
    ],
)
def test_keys_are_as_the_schema_says(
    tokenizer: Tokenizer, compiler: GuideCompiler, name: str, answer: dict[str, Any], is_right: bool
) -> None:
    guide = compiler.compile_task(task_of(SCHEMAS[name]), TEXT)
    assert takes(guide, encode_text(dump(answer), tokenizer)) is is_right


@pytest.mark.parametrize("text", ['{"count": 1, "count": 2}', '{"count": 1, }', '{"new" : 1}', '{"a": 1 }'])
def test_malformed_answers_are_refused(tokenizer: Tokenizer, compiler: GuideCompiler, text: str) -> None:
    assert not takes(compiler.compile_task(task_of(INTEGERS), TEXT), encode_text(text, tokenizer))


def test_closed_objects_stay_closed() -> None:
    for others in (False, True, {}):
        grammar = TaskGrammar(task_of({**INTEGERS, "additionalProperties": others})).text(TEXT)
        assert "ANY_KEY" not in grammar


def test_what_the_data_shows_to_be_open_can_be_answered(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    """From scores of ever new names: the inferred schema is open, and its guide takes a name that no row has."""
    chance = random.Random(1)
    names = ["".join(chance.choices("abcdefgh", k=6)) for _ in range(200)]
    rows = [
        Example(
            (
                Message(Role.USER, f"rate {first} and {second}"),
                Message(Role.ASSISTANT, dump({"scores": {first: chance.randint(0, 9), second: 3}})),
            )
        )
        for first, second in zip(names[::2], names[1::2], strict=True)
    ]
    schema = infer_answer_schema(rows)
    assert schema["properties"]["scores"]["additionalProperties"] == {"type": "integer"}
    guide = compiler.compile_task(task_of(schema), "rate newcomer")
    assert takes(guide, encode_text('{"scores": {"newcomer": 7}}', tokenizer))
    # And the mask goes on to leave every key of training free.
    mask = np.zeros((1, 13), dtype=np.int32)
    guide = compiler.compile_task(task_of(schema), "rate them")
    for token in encode_text(f'{{"scores": {{"{names[150]}": 1, "{names[3]}": 2}}}}', tokenizer):
        guide.fill_mask(mask, 0)
        assert mask[0, token // 32] >> (token % 32) & 1
        guide.accept(token)
    assert guide.is_finished
