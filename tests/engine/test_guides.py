# SPDX-License-Identifier: Apache-2.0
"""Guides that requests bring: right answers are taken, bombs end in an error or stay within bounds."""

import json
import threading
import time
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from open_autoglm.chat.template import encode_text, stop_token_ids
from open_autoglm.engine.guides import GuideCompiler, GuideSpec
from open_autoglm.engine.response_format import guide_of_response_format
from open_autoglm.errors import RequestError
from tests.engine.test_task_grammar import dump, takes, wander

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> GuideCompiler:
    return GuideCompiler(tokenizer, 416, stop_token_ids(tokenizer))


@pytest.mark.parametrize(
    ("spec", "right", "wrong"),
    [
        (GuideSpec.of("json_schema", SCHEMA), dump({"name": "周杰伦", "age": 46}), '{"name": "x", "age": 151}'),
        (GuideSpec.of("json_schema", SCHEMA), dump({"name": 'a"\\b', "age": 0}), '{"name":"x","age":1}'),
        (GuideSpec.of("json_object"), dump({"any": [1, None, {"x": True}]}), "[1]"),
        (GuideSpec.of("regex", "[a-c]{2}-(yes|no)x"), "ab-yesx", "ad-yesx"),
        (GuideSpec.of("choice", ["left", "right", '"q"']), '"q"', "up"),
        (GuideSpec.of("grammar", 'start: "a" b\nb: "x" | "y" b'), "ayyx", "ab"),
    ],
)
def test_each_kind_takes_what_fits(
    tokenizer: Tokenizer, compiler: GuideCompiler, spec: GuideSpec, right: str, wrong: str
) -> None:
    assert takes(compiler.compile(spec), encode_text(right, tokenizer))
    assert not takes(compiler.compile(spec), encode_text(wrong, tokenizer))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BOMBS: list[tuple[str, Any]] = [
    ("regex", "(a+)+b"),
    ("regex", "((a{1,100}){1,100}){1,100}"),
    ("regex", "(x+x+)+y"),
    ("regex", "(.|\n)*a(.|\n){200}b"),
    ("regex", "(" * 5000 + "a" + ")" * 5000),
    ("regex", "|".join("a" * length for length in range(1, 300))),
    ("regex", "[^\\s\\S]"),
    ("regex", "(a"),
    ("regex", "(?<=a)b"),
    ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    ("json_schema", {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}),
    ("json_schema", {"type": "array", "items": {"type": "string", "maxLength": 10**5}, "minItems": 10**6}),
    ("json_schema", {"type": "object", "properties": {f"p{index}": {"type": "null"} for index in range(1500)}}),
    (
        "json_schema",
        {
            "type": "object",
            "allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(6)]} for i in range(9)],
        },
    ),
    ("json_schema", nested(5000)),
    ("json_schema", nested(99)),
    ("json_schema", {"type": "string", "pattern": "^(a+)+b$"}),
    ("json_schema", {"type": "tuple"}),
    ("json_schema", {"not": {"type": "null"}}),
    ("json_schema", {"enum": ["x" * 100_000]}),
    ("grammar", "start: start"),
    ("grammar", "start: start start | start"),
    ("grammar", 'start: a{1,100000}\na: b{1,100000}\nb: c{1,100000}\nc: "c"'),
    ("grammar", "start: ((("),
    ("grammar", "start: r0\n" + "\n".join(f"r{index}:r{index + 1}" for index in range(1200)) + '\nr1200: "x"'),
    ("regex", "a?" * 8000),
    ("json_schema", {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(1900)}}),
    ("json_schema", {"type": "string", "pattern": "a?" * 4000}),
    ("grammar", "%import python"),
    ("choice", []),
    ("choice", [""]),
    ("choice", ["x"] * 3000),
    ("choice", "yes"),
    ("regex", ""),
    ("regex", "a" * 100_000),
    ("json_schema", "text"),
    ("json_schema", True),
]


@pytest.mark.parametrize(("kind", "value"), BOMBS, ids=map(str, range(len(BOMBS))))
def test_a_bomb_is_an_error_or_stays_within_bounds(compiler: GuideCompiler, kind: Any, value: Any) -> None:
    started = time.process_time()
    mask = np.zeros((1, 13), dtype=np.int32)
    try:
        guide = compiler.compile(GuideSpec.of(kind, value, "field"))
        for _ in range(20):
            if guide.is_finished:
                break
            guide.fill_mask(mask, 0)
            guide.accept(int(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))[-1]))
    except RequestError as error:
        assert len(str(error)) < 500
    assert time.process_time() - started < 5


def test_errors_name_the_field_that_was_sent(compiler: GuideCompiler) -> None:
    for spec in (
        lambda: GuideSpec.of("regex", "(a", "guided_regex"),
        lambda: GuideSpec.of("choice", [], "guided_regex"),
        lambda: GuideSpec.of("json_schema", {"type": "nothing"}, "guided_regex"),
    ):
        with pytest.raises(RequestError) as caught:
            compiler.compile(spec())
        assert caught.value.parameter == "guided_regex"


def test_a_million_distinct_guides_do_not_fill_the_memory(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    for index in range(200):
        compiler.compile(GuideSpec.of("regex", f"a{{{index}}}"))
    assert len(compiler._cache) <= 64
    first = compiler.compile(GuideSpec.of("regex", "abc"))
    again = compiler.compile(GuideSpec.of("regex", "abc"))
    token_ids = encode_text("abc", tokenizer)
    assert takes(first, token_ids)  # and each request has a state of its own
    assert takes(again, token_ids)


def test_compiling_in_many_threads_gives_the_same(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    answers: list[str | None] = []

    def work() -> None:
        answers.extend(
            wander(compiler.compile(GuideSpec.of("json_schema", {"enum": list(range(9))})), tokenizer, seed)
            for seed in range(20)
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert {json.loads(answer) for answer in answers if answer} <= set(range(9))


def test_response_formats_are_openais() -> None:
    assert guide_of_response_format({"type": "text"}) is None
    assert guide_of_response_format({"type": "json_object"}) == GuideSpec("json_object", "", "response_format")
    wrapped = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
    spec = guide_of_response_format(wrapped)
    assert spec is not None
    assert json.loads(spec.text) == SCHEMA


@pytest.mark.parametrize(
    ("value", "parameter"),
    [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "text", "more": 1}, "response_format.more"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": 7}}, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}, "response_format.json_schema.x"),
    ],
)
def test_other_response_formats_are_refused_by_field(value: Any, parameter: str) -> None:
    with pytest.raises(RequestError) as caught:
        guide_of_response_format(value)
    assert caught.value.parameter == parameter
