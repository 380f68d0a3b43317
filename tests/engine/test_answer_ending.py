# SPDX-License-Identifier: Apache-2.0
"""A guided JSON answer is valid however few tokens it may take, and untouched where they suffice."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from open_autoglm.chat.template import stop_token_ids
from open_autoglm.engine import LLM
from open_autoglm.engine.guides import Guide, GuideCompiler, GuideSpec
from open_autoglm.task import Task, TaskKind
from tests.engine.tiny_bundle import EXTRACTION

ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "count": {"type": "number"}, "sold": {"type": "boolean"}},
    "required": ["name", "count", "sold"],
    "additionalProperties": False,
}
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "date": {"type": "string"},
        "items": {"type": "array", "items": ITEM},
        "paid": {"type": ["boolean", "null"]},
        "kind": {"enum": ["invoice", "receipt", 7]},
        "说明": {"type": "string"},
    },
    "required": ["date", "items", "kind", "说明"],
    "additionalProperties": False,
}
FREE = {**NESTED, "x-free-order": True, "additionalProperties": {"type": "string"}}
TREE: dict[str, Any] = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {"value": {"type": "integer"}, "left": {"$ref": "#/$defs/tree"}},
            "required": ["value"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/tree",
}
CODE = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        "note": {"type": "string", "minLength": 12},
        "more": {"type": "object"},
    },
    "required": ["code", "note"],
    "additionalProperties": False,
}
TASKS = [Task(TaskKind.EXTRACTION, answer_schema=schema) for schema in (NESTED, FREE, EXTRACTION.answer_schema)]
SPECS = [GuideSpec.of("json_schema", schema) for schema in (NESTED, TREE, CODE)]
SPECS.append(GuideSpec.of("json_object"))
INPUT = 'play "Blue Train" by John Coltrane in 北京 on 2024-05-01'


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GuideCompiler:
    return GuideCompiler(tokenizer, 416, stop_token_ids(tokenizer))


def make_guide(compiler: GuideCompiler, form: Task | GuideSpec) -> tuple[Guide, dict[str, Any] | None]:
    if isinstance(form, Task):
        return compiler.compile_task(form, INPUT), form.answer_schema
    return compiler.compile(form), form.schema()


def speak(compiler: GuideCompiler, guide: Guide, room: int, generator: random.Random, endless: float) -> list[int]:
    """An answer that is chosen at random, mostly without what would end it."""
    mask = np.zeros((1, 416 // 32), dtype=np.int32)
    taken: list[int] = []
    while len(taken) < room and not guide.is_finished:
        guide.fill_mask(mask, 0)
        flags = np.unpackbits(mask.view(np.uint8)[0], bitorder="little")
        allowed = [int(one) for one in np.flatnonzero(flags)]
        text = {one: compiler.tokenizer.decode_bytes([one]) for one in allowed}
        going = [one for one in allowed if not set(text[one]) & set(b'"}]')]
        chosen = generator.choice(going if going and generator.random() < endless else allowed)
        if text[chosen] == b"":  # an end token: the answer is complete
            assert guide.is_complete
            break
        taken.append(guide.fit(chosen, room - len(taken) - 1))
        guide.accept(taken[-1])
    return taken


@settings(deadline=None, max_examples=120)
@given(
    st.sampled_from([*TASKS, *SPECS]), st.integers(0, 2**32), st.integers(50, 200), st.sampled_from([0.0, 0.7, 0.95, 1])
)
def test_an_answer_is_valid_wherever_its_room_ends(
    compiler: GuideCompiler, form: Task | GuideSpec, seed: int, room: int, endless: float
) -> None:
    guide, schema = make_guide(compiler, form)
    taken = speak(compiler, guide, room, random.Random(seed), endless)
    assert len(taken) <= room
    value = json.loads(compiler.tokenizer.decode_bytes(taken))
    Draft202012Validator(schema or {}).validate(value)
    assert make_guide(compiler, form)[0].takes(taken)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([*TASKS, *SPECS]), st.integers(0, 2**32), st.sampled_from([0.0, 0.4]))
def test_an_answer_that_fits_with_some_room_to_spare_is_left_alone(
    compiler: GuideCompiler, form: Task | GuideSpec, seed: int, endless: float
) -> None:
    guide, _ = make_guide(compiler, form)
    taken = speak(compiler, guide, 400, random.Random(seed), endless)
    assume(not guide.is_shortened)
    again, _ = make_guide(compiler, form)
    spare = 32  # the shortest end may be cut into fewer tokens than the one that is found
    for left, token_id in zip(range(len(taken) - 1 + spare, spare - 1, -1), taken, strict=True):
        assert again.fit(token_id, left) == token_id
        again.accept(token_id)
    assert again.is_complete
    assert not again.is_shortened


@pytest.mark.parametrize(("form", "least"), [(TASKS[2], 20), (SPECS[1], 13), (SPECS[3], 3)])
def test_room_for_a_short_answer_is_enough(compiler: GuideCompiler, form: Task | GuideSpec, least: int) -> None:
    for room in range(least, least + 20):
        guide, schema = make_guide(compiler, form)
        taken = speak(compiler, guide, room, random.Random(room), 1.0)
        assert len(taken) <= room
        Draft202012Validator(schema or {}).validate(json.loads(compiler.tokenizer.decode_bytes(taken)))


def test_a_copy_keeps_its_own_room(compiler: GuideCompiler) -> None:
    first, schema = make_guide(compiler, TASKS[0])
    taken = speak(compiler, first, 20, random.Random(1), 1.0)
    first, _ = make_guide(compiler, TASKS[0])
    for token_id in taken[:5]:
        first.accept(token_id)
    second = first.copy()
    for guide, seed in ((first, 2), (second, 3)):
        rest = speak(compiler, guide, 80, random.Random(seed), 1.0)
        assert guide.is_shortened
        Draft202012Validator(schema or {}).validate(json.loads(compiler.tokenizer.decode_bytes([*taken[:5], *rest])))


def test_room_for_no_answer_at_all_cuts_it(compiler: GuideCompiler) -> None:
    guide, _ = make_guide(compiler, TASKS[0])
    assert len(speak(compiler, guide, 6, random.Random(0), 1.0)) == 6
    assert not guide.is_shortened
    longer, schema = make_guide(compiler, TASKS[0])  # what was found out for one request does not bind another
    taken = speak(compiler, longer, 100, random.Random(0), 1.0)
    Draft202012Validator(schema or {}).validate(json.loads(compiler.tokenizer.decode_bytes(taken)))


def test_the_engine_says_that_an_answer_was_shortened(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string", "minLength": 30}}, "required": ["text"]}
    longest = llm.chat([{"role": "user", "content": "hello"}], guided_json=schema, max_tokens=150, logprobs=2)
    short = llm.chat([{"role": "user", "content": "hello"}], guided_json=schema, max_tokens=60, logprobs=2)
    for completion in (longest, short):
        Draft202012Validator(schema or {}).validate(json.loads(completion.text))
        assert completion.logprobs is not None
        assert [one.token_id for one in completion.logprobs] == list(completion.token_ids)
    assert short.finish_reason == "length"
    assert len(short.token_ids) <= 60
    kept = len(short.token_ids) - 3  # the mark that closes the string, and the brackets
    assert short.token_ids[:kept] == longest.token_ids[:kept]
    assert kept > 50
