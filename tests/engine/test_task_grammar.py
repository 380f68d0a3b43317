# SPDX-License-Identifier: Apache-2.0
"""A task's guide takes every valid answer and nothing else."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from open_autoglm.chat.template import encode_text, stop_token_ids
from open_autoglm.data.schema import infer_answer_schema
from open_autoglm.engine.guides import Guide, GuideCompiler
from open_autoglm.engine.task_grammar import TaskGrammar
from open_autoglm.errors import ConfigurationError, RequestError
from open_autoglm.task import Task, TaskKind
from open_autoglm.words import is_copied, split_words
from tests.engine.tiny_bundle import CLASSIFICATION, EXTRACTION, LINES

RICH = {
    "type": "object",
    "x-free-order": True,
    "additionalProperties": False,
    "required": ["kind", "count"],
    "properties": {
        "kind": {"enum": ["a", "ab", 'q"\\', "北京", 7, None]},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "sure": {"type": "boolean"},
        "names": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        "place": {"anyOf": [{"type": "string", "x-copied": True}, {"type": "null"}]},
        "inner": {
            "type": "object",
            "properties": {
                "x": {"type": "string"},
                "y": {"type": ["integer", "null"]},
                "z": {"const": [1, {"k": "v"}]},
            },
            "required": ["y"],
            "additionalProperties": False,
        },
        "empty": {"type": "object", "properties": {}, "additionalProperties": False},
        "none": {"type": "array", "maxItems": 0},
    },
}
RICH_TASK = Task(TaskKind.EXTRACTION, answer_schema=RICH)


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GuideCompiler:
    return GuideCompiler(tokenizer, 416, stop_token_ids(tokenizer))


def takes(guide: Guide, token_ids: list[int]) -> bool:
    """Whether the guide allows each token in turn and is then complete."""
    mask = np.zeros((1, 13), dtype=np.int32)
    for token_id in token_ids:
        guide.fill_mask(mask, 0)
        if not mask[0, token_id // 32] >> (token_id % 32) & 1:
            return False
        guide.accept(token_id)
    return guide.is_finished


def wander(guide: Guide, tokenizer: Tokenizer, seed: int, limit: int = 400) -> str | None:
    """A random answer under the guide, or nothing if it grows too long. Closing quotes and brackets are preferred."""
    generator = random.Random(seed)
    mask = np.zeros((1, 13), dtype=np.int32)
    token_ids: list[int] = []
    while not guide.is_finished:
        guide.fill_mask(mask, 0)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: tokenizer.get_vocab_size()]
        allowed = np.flatnonzero(bits).tolist()
        assert allowed, "the guide leads nowhere"
        closing = [item for item in allowed if tokenizer.decode([item]) in ('"', '"}', "}", "]", '"}}')]
        token_id = generator.choice(closing if closing and generator.random() < 0.4 else allowed)
        guide.accept(token_id)
        token_ids.append(token_id)
        if len(token_ids) > limit:
            return None
    return tokenizer.decode(token_ids, skip_special_tokens=False)


def words(text: str) -> st.SearchStrategy[str]:
    cut = split_words(text)
    spans = st.tuples(st.integers(0, len(cut) - 1), st.integers(1, len(cut)))
    return spans.map(lambda span: "".join(cut[span[0] : span[1]]).strip()).filter(bool)


def any_answer(text: str) -> st.SearchStrategy[Any]:
    finite = st.floats(-1e12, 1e12, allow_nan=False).filter(lambda number: "." in repr(number))
    inner = st.fixed_dictionaries({}, optional={"x": st.text(max_size=5), "z": st.just([1, {"k": "v"}])}).flatmap(
        lambda chosen: st.one_of(st.none(), st.integers(-(10**17), 10**17)).map(
            lambda y: {key: {**chosen, "y": y}[key] for key in ("x", "y", "z") if key in {**chosen, "y": y}}
        )
    )
    required = {"kind": st.sampled_from(RICH["properties"]["kind"]["enum"]), "count": st.integers(-(10**17), 10**17)}
    optional = {
        "share": st.one_of(finite, st.integers(-1000, 1000)),
        "sure": st.booleans(),
        "names": st.lists(st.text(max_size=6), min_size=1, max_size=3),
        "place": st.one_of(st.none(), words(text)),
        "inner": inner,
        "empty": st.just({}),
        "none": st.just([]),
    }
    built = st.fixed_dictionaries(required, optional=optional)
    return built.flatmap(lambda value: st.permutations(list(value.items())).map(dict))


@pytest.mark.parametrize("number", [0.00011928896023931557, -1.2345678901234567e-05, 123456789012.25])
def test_numbers_are_taken_as_they_are_written(tokenizer: Tokenizer, compiler: GuideCompiler, number: float) -> None:
    answer = {"kind": RICH["properties"]["kind"]["enum"][0], "count": 0, "share": number}
    assert takes(compiler.compile_task(RICH_TASK, "x"), encode_text(dump(answer), tokenizer))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), text=st.sampled_from([*LINES, 'tab\t"quoted" \\ back\n新 line 北京市', "x"]))
def test_every_valid_answer_in_any_order_is_taken(
    tokenizer: Tokenizer, compiler: GuideCompiler, data: st.DataObject, text: str
) -> None:
    answer = data.draw(any_answer(text))
    assert takes(compiler.compile_task(RICH_TASK, text), encode_text(dump(answer), tokenizer))


@pytest.mark.parametrize("text", LINES)
def test_random_answers_are_valid_without_double_keys_and_copied(
    tokenizer: Tokenizer, compiler: GuideCompiler, text: str
) -> None:
    schema = EXTRACTION.answer_schema
    assert schema is not None
    lengths = []
    for seed in range(25):
        answer = wander(compiler.compile_task(EXTRACTION, text), tokenizer, seed)
        assert answer is not None
        value = json.loads(answer, object_pairs_hook=list)
        pairs = dict(value)
        assert [key for key, _ in value] == ["intent", "slots"]
        assert pairs["intent"] in schema["properties"]["intent"]["enum"]
        keys = [key for key, _ in pairs["slots"]]
        assert len(keys) == len(set(keys))
        assert set(keys) <= {"artist", "track", "city"}
        lengths.append(len(keys))
        for _, copied in pairs["slots"]:
            assert copied
            assert copied in text
            assert copied == copied.strip()
        assert answer == dump(json.loads(answer))
    assert len(set(lengths)) > 1


def test_random_rich_answers_are_valid(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    done = 0
    for seed in range(40):
        answer = wander(compiler.compile_task(RICH_TASK, LINES[0]), tokenizer, seed)
        if answer is None:
            continue
        done += 1
        pairs = json.loads(answer, object_pairs_hook=list)
        keys = [key for key, _ in pairs]
        assert len(keys) == len(set(keys))
        assert {"kind", "count"} <= set(keys) <= set(RICH["properties"])
    assert done > 10


@pytest.mark.parametrize(
    "answer",
    [
        '{"intent": "PlayMusic", "slots": {"artist": "beatles", "artist": "beatles"}}',
        '{"intent": "PlayMusic", "slots": {"artist": ""}}',
        '{"intent": "PlayMusic", "slots": {"artist": "beat"}}',
        '{"intent": "PlayMusic", "slots": {"artist": "the the"}}',
        '{"intent": "PlayMusic", "slots": {"artist": "song "}}',
        '{"intent": "PlayMusic", "slots": {"singer": "beatles"}}',
        '{"intent": "Play", "slots": {}}',
        '{"intent": "PlayMusic","slots": {}}',
        '{"intent": "PlayMusic"}',
        '{"slots": {}, "intent": "PlayMusic"}',
        '{"intent": "PlayMusic", "slots": {"artist": "beatles", }}',
        '{"intent": "PlayMusic", "slots": {}} ',
    ],
)
def test_wrong_answers_are_refused(tokenizer: Tokenizer, compiler: GuideCompiler, answer: str) -> None:
    assert not takes(compiler.compile_task(EXTRACTION, LINES[0]), encode_text(answer, tokenizer))
    right = '{"intent": "PlayMusic", "slots": {"track": "yesterday", "artist": "the beatles"}}'
    assert takes(compiler.compile_task(EXTRACTION, LINES[0]), encode_text(right, tokenizer))


def test_labels_are_the_only_answers(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    seen = {wander(compiler.compile_task(CLASSIFICATION, ""), tokenizer, seed) for seed in range(60)}
    # "card" can go on to "card lost", so it ends with a stop token, which is a control token.
    assert {answer.split("<|")[0] for answer in seen if answer} == set(CLASSIFICATION.labels)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.data())
def test_what_the_data_calls_copied_can_be_copied(text: str, data: st.DataObject) -> None:
    """The words of `data` begin and end at borders that the guide has too."""
    assert "".join(split_words(text)) == text
    start = data.draw(st.integers(0, len(text)))
    value = text[start : data.draw(st.integers(start, len(text)))]
    if not is_copied(value, text):
        return
    borders = {0}
    for word in split_words(text):
        borders.add(max(borders) + len(word))
    places = [place for place in range(len(text)) if text.startswith(value, place)]
    assert any(place in borders and place + len(value) in borders for place in places)


def test_more_than_64_free_keys_come_in_the_schemas_order(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    keys = [f"k{index}" for index in range(70)]
    schema = {
        "type": "object",
        "properties": {key: {"type": "boolean"} for key in keys},
        "required": ["k3"],
        "additionalProperties": False,
        "x-free-order": True,
    }
    task = Task(TaskKind.EXTRACTION, answer_schema=schema)
    for answer, is_right in (
        ({"k1": True, "k3": False, "k69": True}, True),
        ({"k3": False, "k1": True}, False),
        ({"k1": True}, False),
    ):
        assert takes(compiler.compile_task(task, ""), encode_text(dump(answer), tokenizer)) is is_right
    full = dict.fromkeys(keys[:64], True)
    task = Task(TaskKind.EXTRACTION, answer_schema={**schema, "properties": {k: {"type": "boolean"} for k in full}})
    shuffled = dict(random.Random(1).sample(list(full.items()), 64))
    assert takes(compiler.compile_task(task, ""), encode_text(dump(shuffled), tokenizer))


def test_inferred_schemas_can_be_guided(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    from open_autoglm.chat.messages import Message, Role
    from open_autoglm.data.example import Example

    answers = [
        {"a": 1, "b": None, "c": [], "d": {"x": "one"}, "e": ["u"]},
        {"a": 1.5, "b": "t", "c": [], "d": {}, "e": ["u", "v"]},
    ]
    examples = [
        Example((Message(Role.USER, "one text t"), Message(Role.ASSISTANT, dump(answers[index % 2]))))
        for index in range(60)
    ]
    task = Task(TaskKind.EXTRACTION, answer_schema=infer_answer_schema(examples))
    for answer in answers:
        guide = compiler.compile_task(task, "one text t")
        assert takes(guide, encode_text(dump(answer), tokenizer))


def test_an_input_without_words_leaves_copied_strings_free(tokenizer: Tokenizer, compiler: GuideCompiler) -> None:
    answer = '{"intent": "PlayMusic", "slots": {"artist": "any thing"}}'
    for text in ("", "  \n", "x " * 60_000):
        assert takes(compiler.compile_task(EXTRACTION, text), encode_text(answer, tokenizer))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "a+"}, "pattern"),
        ({"type": "tuple"}, "tuple"),
        ({}, "without a type"),
        ({"type": "array"}, "without 'items'"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "'x'"),
        ({"anyOf": []}, "empty list"),
    ],
)
def test_a_schema_beyond_us_is_refused_by_name(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TaskGrammar(Task(TaskKind.EXTRACTION, answer_schema=schema)).text("")


def test_deep_schemas_are_refused(compiler: GuideCompiler) -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ConfigurationError, match="32 deep"):
        compiler.compile_task(Task(TaskKind.EXTRACTION, answer_schema=schema), "")


def test_a_schema_with_thousands_of_optional_keys_ends_in_an_error_or_an_answer(compiler: GuideCompiler) -> None:
    """A chain of rules as long as this once overflowed the stack and ended the process."""
    mask = np.zeros((1, 13), dtype=np.int32)
    for count in (2000, 3000, 20_000):
        many = {f"k{index}": {"type": "string"} for index in range(count)}
        task = Task(TaskKind.EXTRACTION, answer_schema={"type": "object", "properties": many})
        try:
            compiler.compile_task(task, "").fill_mask(mask, 0)
            assert mask.any()
        except (RequestError, ConfigurationError) as error:
            assert count > 2000, error
