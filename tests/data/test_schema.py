# SPDX-License-Identifier: Apache-2.0
"""The inferred schema accepts every answer it was made from, and says no more than the answers do."""

import json
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data import Example, PreparedData
from open_autoglm.data.answers import canonical_answer, drop_unusable
from open_autoglm.data.findings import FindingLog
from open_autoglm.data.schema import infer_answer_schema, infer_labels
from open_autoglm.errors import DataError
from open_autoglm.task import TaskKind
from open_autoglm.words import find_whole_words, is_copied, split_words


def example(text: str, answer: Any, row: int = 1) -> Example:
    content = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return Example((Message(Role.USER, text), Message(Role.ASSISTANT, content)), f"a.jsonl:{row}")


def fits(value: Any, schema: dict[str, Any], text: str) -> bool:
    """A validator for just the keywords that we infer, ours included."""
    if "anyOf" in schema:
        return any(fits(value, part, text) for part in schema["anyOf"])
    match schema.get("type"):
        case "object":
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(schema["properties"])
                and all(fits(inner, schema["properties"][key], text) for key, inner in value.items())
            )
        case "array":
            return (
                isinstance(value, list)
                and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
                and all(fits(item, schema["items"], text) for item in value)
            )
        case "string":
            copied = not schema.get("x-copied") or (isinstance(value, str) and is_copied(value, text))
            return isinstance(value, str) and value in schema.get("enum", [value]) and copied
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
    return False


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.sampled_from("abc"))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner)),
    max_leaves=6,
)
ANSWERS = st.lists(st.dictionaries(st.sampled_from(["k", "l", "m"]), VALUES), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(ANSWERS)
def test_every_answer_fits_the_schema_made_from_it(answers: list[Any]) -> None:
    schema = infer_answer_schema([example("some text", answer) for answer in answers])
    assert all(fits(answer, schema, "some text") for answer in answers)


@settings(max_examples=150, deadline=None)
@given(ANSWERS)
def test_canonical_answers_keep_their_value_and_do_not_change_again(answers: list[Any]) -> None:
    schema = infer_answer_schema([example("some text", answer) for answer in answers])
    for answer in answers:
        text = canonical_answer(json.dumps(answer), schema)
        assert json.loads(text) == answer
        assert canonical_answer(text, schema) == text


def test_snips_answers_of_all_splits_fit_the_schema_of_the_training_split(snips: PreparedData) -> None:
    schema = snips.task.answer_schema
    assert schema is not None
    for split in (snips.train, snips.valid, snips.test):
        assert all(fits(json.loads(e.answer), schema, e.input_text) for e in split)
    intent, slots = schema["properties"]["intent"], schema["properties"]["slots"]
    assert schema["required"] == ["intent", "slots"]
    assert "x-free-order" not in schema
    assert len(intent["enum"]) == 7
    assert slots["x-free-order"] is True
    assert slots["required"] == []
    assert slots["properties"]["artist"] == {"type": "string", "x-copied": True}
    assert slots["properties"]["state"] == {
        "anyOf": [
            {"type": "string", "x-copied": True},
            {"type": "array", "items": {"type": "string", "x-copied": True}, "minItems": 2},
        ]
    }
    assert len(slots["properties"]) == 39


def test_closed_sets_are_enums_and_open_ones_are_not() -> None:
    rows = [
        example("t", {"kind": "abc"[n % 3], "name": f"n{n}", "one": "always", "rare": "x" if n else "y"})
        for n in range(60)
    ]
    properties = infer_answer_schema(rows)["properties"]
    assert properties["kind"] == {"type": "string", "enum": ["a", "b", "c"]}
    assert properties["name"] == {"type": "string"}
    assert properties["one"] == {"type": "string", "enum": ["always"]}
    assert properties["rare"] == {"type": "string"}, "one value in sixty was new, so another may come"
    few = infer_answer_schema([example("t", {"kind": "abc"[n % 3]}) for n in range(12)])
    assert few["properties"]["kind"] == {"type": "string"}, "four rows per value prove nothing"


@pytest.mark.parametrize(
    ("answer", "in_order"),
    [
        (lambda n: {"from": f"a{n}", "to": f"b{n}"}, True),
        (lambda n: {"ways": [f"a{n}", {"by": f"b{n}"}], "sure": True}, True),
        (lambda n: {"to": f"b{n}", "from": f"a{n}"}, False),
        (lambda n: {"from": f"a{n}", "again": f"a{n}"}, False),
        (lambda n: {"all": f"from a{n} to b{n}", "to": f"b{n}"}, False),
        (lambda n: {"from": f"a{n}"}, False),
    ],
)
def test_answers_that_copy_from_left_to_right_are_known(
    answer: Callable[[int], dict[str, Any]], in_order: bool
) -> None:
    rows = [example(f"from a{n} to b{n} please", answer(n)) for n in range(400)]
    assert infer_answer_schema(rows).get("x-copied-in-order", False) is in_order
    assert "x-copied-in-order" not in infer_answer_schema(rows[:49])
    odd = dict(reversed(answer(1).items()))
    assert infer_answer_schema([*rows, example("from a1 to b1", odd)]).get("x-copied-in-order", False) is in_order


def test_words_of_the_input_are_copied_only_with_enough_evidence() -> None:
    rows = [example(f"go to town{n} now", {"place": f"town{n}", "part": f"own{n}"}) for n in range(30)]
    assert infer_answer_schema(rows)["properties"]["place"] == {"type": "string", "x-copied": True}
    assert infer_answer_schema(rows)["properties"]["part"] == {"type": "string"}
    assert infer_answer_schema(rows[:19])["properties"]["place"] == {"type": "string"}
    spoilt = [*rows, example("go", {"place": "elsewhere", "part": "x"})]
    assert infer_answer_schema(spoilt)["properties"]["place"] == {"type": "string"}


def test_key_order_is_fixed_unless_the_answers_change_it() -> None:
    fixed = [example("t", {"a": 1, "b": 2}), example("t", {"b": 1, "c": 2}), example("t", {"a": 1, "b": 1, "c": 1})]
    schema = infer_answer_schema(fixed)
    assert list(schema["properties"]) == ["a", "b", "c"]
    assert (schema["required"], "x-free-order" in schema) == (["b"], False)
    assert canonical_answer('{"c":1,\n"a": "é", "b": 2}', schema) == '{"a": "é", "b": 2, "c": 1}'
    assert canonical_answer('{"z": 0, "b": 2}', schema) == '{"b": 2, "z": 0}'
    changing = [example("t", {"a": 1, "b": 2}), example("t", {"b": 1, "a": 2})]
    schema = infer_answer_schema(changing)
    assert schema["x-free-order"] is True
    assert canonical_answer('{"b": 1, "a": 2}', schema) == '{"b": 1, "a": 2}'
    assert infer_answer_schema([example("t", {"a": 1}), example("t", {"b": 1})])["x-free-order"] is True


def test_arrays_of_objects_and_empty_arrays() -> None:
    rows = [example("t", [{"name": "x", "n": 1.5}, {"name": "y", "n": 2}]), example("t", [])]
    schema = infer_answer_schema(rows)
    assert schema["type"] == "array"
    assert "minItems" not in schema
    assert schema["items"]["properties"]["n"] == {"type": "number"}
    assert infer_answer_schema([example("t", {"a": []})])["properties"]["a"] == {"type": "array", "maxItems": 0}


def test_answers_that_are_not_json_are_dropped_while_few_and_refused_while_many() -> None:
    rows = [example("t", {"a": n}, n + 1) for n in range(200)]
    rows[41] = example("t", "no idea", 42)
    log = FindingLog()
    kept = drop_unusable(rows, TaskKind.EXTRACTION, log)
    assert kept == rows[:41] + rows[42:]
    assert [(f.what, f.rows) for f in log.findings()] == [("answer is not JSON", {"a.jsonl": "42"})]
    rows[7] = rows[8] = example("t", "17", 8)
    with pytest.raises(DataError, match=r"a.jsonl:8: the answer is not a JSON object.* 2 more of 200"):
        drop_unusable(rows, TaskKind.EXTRACTION, FindingLog())


@pytest.mark.parametrize("answer", ["17", '"x"', "null", "{", "[" * 40 + "]" * 40, "[" * 100_000])
def test_what_is_no_answer_says_so(answer: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        canonical_answer(answer, None)
    with pytest.raises(DataError, match=r"a.jsonl:1"):
        infer_answer_schema([example("t", answer)])


def test_labels_come_most_frequent_first() -> None:
    assert infer_labels([example("t", label) for label in ("b", " a", "a", "c", "a ", "b")]) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("value", "text", "copied"),
    [
        *[("york", "new york city", True), ("new york", "new york", True), ("yor", "new york", False)],
        *[
            ("don't", "i don't", True),
            ("don", "i don't", True),
            ("50", "the 50 best", True),
            ("5", "the 50 best", False),
        ],
        *[
            ("周杰伦", "放 周杰伦 的歌", True),
            ("周杰伦", "放周杰伦的歌", True),
            ("", "x", False),
            ("york ", "york x", True),
        ],
        *[
            (unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFD", "un café noir"), True),
            ("x", "x_y", False),
            ("(a)", "b(a)c", True),
        ],
        *[("a..", "a... b", True), ("a...", "a... b", True), ("a ", "a  b", True), ("a,", "a, b", True)],
        *[("e", unicodedata.normalize("NFD", "é"), False), ("東京", "東京都庁", True), ("ก", "กั", False)],
    ],
)
def test_whole_words_are_those_of_guided_decoding(value: str, text: str, copied: bool) -> None:
    llguidance = pytest.importorskip("llguidance")
    tokenizer = llguidance.LLTokenizer("byte")
    grammar = f"start: WORDS\nWORDS: %regex {json.dumps({'substring_chunks': split_words(text)})}"
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    tokens = tokenizer.tokenize_str(value)
    accepts = bool(value) and matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()
    assert is_copied(value, text) is copied is accepts


@given(st.text("ab c_1é", max_size=12), st.text("ab c_1é", min_size=1, max_size=3))
def test_places_of_whole_words_hold_the_value(text: str, value: str) -> None:
    places = list(find_whole_words(value, text))
    assert all(text[start:end] == value for start, end in places)
    assert (value in text.split()) <= bool(places)
