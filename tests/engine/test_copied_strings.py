# SPDX-License-Identifier: Apache-2.0
"""Masks of copied strings are those of the grammar that holds the words of the input, token for token."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.template import stop_token_ids
from open_autoglm.data import Example, train_tokenizer
from open_autoglm.engine.copied_strings import CopyShape
from open_autoglm.engine.guides import FREE_TOKENS, Guide, GuideCompiler
from open_autoglm.engine.task_grammar import TaskGrammar
from open_autoglm.task import Task, TaskKind

COPIED = {"type": "string", "x-copied": True}
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"a": COPIED, "b": {"type": "string", "enum": ["on", "off"]}, "c": {"type": "integer"}},
        "required": ["a"],
    },
    {
        "type": "object",
        "x-free-order": True,
        "properties": {
            "a": {"anyOf": [COPIED, {"type": "array", "items": COPIED, "minItems": 2}]},
            "b": {"type": ["string", "null"], "x-copied": True},
            "q\"\\": COPIED,
        },
    },
    {
        "type": "array",
        "items": {"type": "object", "properties": {"a": COPIED, "b": {"type": "array", "items": COPIED}}},
    },
    COPIED,
]  # fmt: skip
PIECES = (
    '{"a": "',
    '", "b": "',
    '", "b": ["',
    '"}, {"a": "',
    '", "',
    '"}',
    '"]',
    '"]}',
    ', "a": "play',
    '["play',
    '", "jazz',
    'jazz"',
)
"""Tokens over several parts of an answer; some write into a string that they open or close."""
TEXTS = (
    "play jazz",
    'say "play it" twice',
    "back\\slash \\\\ jazz\nplay",
    "播放 周杰伦 的歌 café",
    "a  b",
    " jazz jazz ",
    "it's\tplay,jazz",
)


def make_tokenizer() -> Tokenizer:
    rows = [
        Example(
            (Message(Role.USER, text), Message(Role.ASSISTANT, json.dumps({"a": "jazz", "b": "on"}))), f"a:{number}"
        )
        for number, text in enumerate(TEXTS)
    ]
    tokenizer = train_tokenizer(rows, Task(TaskKind.EXTRACTION, answer_schema=SCHEMAS[0]))
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in PIECES])
    return tokenizer


@pytest.fixture(scope="module")
def compiler() -> GuideCompiler:
    tokenizer = make_tokenizer()
    size = tokenizer.get_vocab_size() + 3
    return GuideCompiler(tokenizer, size, stop_token_ids(tokenizer))


def with_words(compiler: GuideCompiler, task: Task, text: str) -> Guide:
    """The guide by the grammar that is compiled for this input."""
    return Guide(compiler._compile(FREE_TOKENS + TaskGrammar(task).text(text), "", None))


def tokens_of(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(compiler: GuideCompiler, schema: dict[str, Any], text: str, seed: int) -> int:
    """Go some random way through both, comparing at each step; returns how many steps were within a copied string."""
    task = Task(TaskKind.EXTRACTION, answer_schema=schema)
    ours, theirs = compiler.compile_task(task, text), with_words(compiler, task, text)
    assert ours._copied is not None
    chance = random.Random(seed)
    masks = np.zeros((2, -(-compiler._vocab_size // 32)), dtype=np.int32)
    within = 0
    for _ in range(40):
        if theirs.is_finished:
            assert ours.is_finished
            break
        if chance.random() < 0.2:
            ours = ours.copy()
        ours.fill_mask(masks, 0)
        theirs.fill_mask(masks, 1)
        allowed = tokens_of(masks[1])
        assert tokens_of(masks[0]) == allowed
        within += ours._copied is not None and ours._copied._place.is_copied
        token_id = chance.choice(allowed)
        ours.accept(token_id)
        theirs.accept(token_id)
    return within


@pytest.mark.parametrize("schema", SCHEMAS, ids=["object", "free", "array", "string"])
@pytest.mark.parametrize("text", TEXTS)
def test_masks_are_those_of_the_grammar_with_the_words(
    compiler: GuideCompiler, schema: dict[str, Any], text: str
) -> None:
    assert sum(walk(compiler, schema, text, seed) for seed in range(8)) > 5


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMAS), st.text("ab \"\\\n,周é'", min_size=1, max_size=30), st.integers(0, 9))
def test_masks_are_the_same_for_any_input(
    compiler: GuideCompiler, schema: dict[str, Any], text: str, seed: int
) -> None:
    if text.strip():
        walk(compiler, schema, text, seed)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"anyOf": [COPIED, {"const": "none"}]},
        {"type": "object", "properties": {"a": COPIED}, "additionalProperties": COPIED},
        {"type": "object", "properties": {"a": {"anyOf": [COPIED, {"type": "string"}]}}},
        {"type": "object", "properties": {"a": {"enum": [{"b": "c"}]}}},
    ],
)
def test_where_the_place_does_not_tell_what_a_string_is_there_is_no_shape(schema: dict[str, Any]) -> None:
    assert CopyShape.of(schema) is None


def test_an_input_without_words_takes_any_string(compiler: GuideCompiler) -> None:
    guide = compiler.compile_task(Task(TaskKind.EXTRACTION, answer_schema=SCHEMAS[0]), " \n ")
    assert guide._copied is None


def lists_in_order(words: list[str]) -> list[str]:
    """All lists of one or two runs of words, the second from behind the first, if there is anything."""
    spans = [(start, end) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]
    found = [[span] for span in spans]
    for first in spans:
        found += [[first, second] for second in spans if second[0] >= first[1] or first[1] == len(words)]
    return [json.dumps([" ".join(words[start:end]) for start, end in spans]) for spans in found]


def test_strings_that_are_copied_in_order_come_from_behind_each_other(compiler: GuideCompiler) -> None:
    words = ["play", "some", "jazz", "it"]
    schema = {"type": "array", "items": COPIED, "minItems": 1, "maxItems": 2, "x-copied-in-order": True}
    task = Task(TaskKind.EXTRACTION, answer_schema=schema)
    valid = lists_in_order(words)
    tokens = compiler._bytes().tokens
    mask = np.zeros((1, -(-compiler._vocab_size // 32)), dtype=np.int32)
    answers = set()
    for seed in range(60):
        guide, written, chance = compiler.compile_task(task, " ".join(words)), b"", random.Random(seed)
        while not guide.is_finished:
            if chance.random() < 0.2:
                guide = guide.copy()
            going_on = [answer.encode() for answer in valid if answer.encode().startswith(written)]
            guide.fill_mask(mask, 0)
            allowed = [token_id for token_id in tokens_of(mask) if token_id < len(tokens) and tokens[token_id]]
            expected = [
                token_id
                for token_id, data in enumerate(tokens)
                if data and any(answer.startswith(written + data) for answer in going_on)
            ]
            assert allowed == expected, written
            if not allowed:
                break
            token_id = chance.choice(allowed)
            guide.accept(token_id)
            written += tokens[token_id]
        assert written.decode() in valid
        answers.add(written)
    assert len(answers) > 10
