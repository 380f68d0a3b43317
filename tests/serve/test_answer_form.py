# SPDX-License-Identifier: Apache-2.0
"""Which answers break their form: held to jsonschema, and to the orders that name a form."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.engine.orders import ChatOrder, TextOrder
from open_autoglm.serve.watching.answer_form import AnswerForm, form_of
from tests.engine.tiny_bundle import CLASSIFICATION, DIALOGUE, EXTRACTION

MESSAGES = [{"role": "user", "content": "hello"}]
WORDS = st.sampled_from(["PlayMusic", "GetWeather", "Other", "", "北京"])
SLOTS = st.dictionaries(st.sampled_from(["artist", "track", "city", "mood"]), st.one_of(WORDS, st.integers()))
ANSWERS = st.one_of(
    st.fixed_dictionaries({"intent": st.one_of(WORDS, st.booleans())}, optional={"slots": SLOTS, "extra": WORDS}),
    st.lists(WORDS, max_size=2),
    WORDS,
    st.none(),
)
NUMBERS: dict[str, Any] = {
    "type": "array",
    "items": {"anyOf": [{"type": "integer"}, {"const": "none"}, {"type": ["null", "boolean"]}]},
}


@settings(max_examples=100, deadline=None)
@given(ANSWERS)
def test_answers_fit_a_schema_where_jsonschema_says_so(answer: Any) -> None:
    schema = EXTRACTION.answer_schema
    assert schema is not None
    fault = AnswerForm(schema=schema).fault(json.dumps(answer), (), "stop")
    assert (fault is None) == jsonschema.Draft202012Validator(schema).is_valid(answer)
    assert fault in (None, "shape", "label")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(), st.booleans(), st.none(), st.sampled_from(["none", "x"]), st.just(0.5))))
def test_so_do_types_and_alternatives(answer: list[Any]) -> None:
    fault = AnswerForm(schema=NUMBERS).fault(json.dumps(answer), (), "stop")
    assert (fault is None) == jsonschema.Draft202012Validator(NUMBERS).is_valid(answer)


@pytest.mark.parametrize(
    ("form", "text", "arguments", "reason", "fault"),
    [
        (AnswerForm(labels=frozenset(("card", "余额"))), "余额", (), "stop", None),
        (AnswerForm(labels=frozenset(("card", "余额"))), "Card", (), "stop", "label"),
        (AnswerForm(labels=frozenset(("card", "余额"))), "ca", (), "length", "cut"),
        (AnswerForm(schema={}), '{"a": 1', (), "length", "cut"),
        (AnswerForm(schema={}), '{"a": 1', (), "stop", "not_json"),
        (AnswerForm(schema={}), "[" * 100_000, (), "stop", "not_json"),
        (AnswerForm(schema={"type": "object"}), "[]", (), "stop", "shape"),
        (AnswerForm(schema={"enum": 5, "required": 6, "properties": 7}), "{}", (), "stop", None),
        (AnswerForm(has_tools=True), "free text", (), "stop", None),
        (AnswerForm(has_tools=True), "", ('{"city": "x"}',), "tool_calls", None),
        (AnswerForm(has_tools=True), "", ('{"city": "x"}', '{"ci'), "length", "cut"),
        (AnswerForm(has_tools=True), "", ("[]",), "tool_calls", "not_json"),
    ],
)
def test_how_an_answer_breaks_its_form(
    form: AnswerForm, text: str, arguments: tuple[str, ...], reason: str, fault: str | None
) -> None:
    assert form.fault(text, arguments, reason) == fault


def test_the_form_is_what_the_order_names_or_else_the_tasks() -> None:
    extraction, labels, free = (task.to_dict() for task in (EXTRACTION, CLASSIFICATION, DIALOGUE))
    plain = ChatOrder(MESSAGES)
    assert form_of(plain, extraction) == AnswerForm(schema=EXTRACTION.answer_schema)
    assert form_of(plain, labels) == AnswerForm(labels=frozenset(CLASSIFICATION.labels))
    assert form_of(plain, free) is form_of(plain, None) is None
    assert form_of(ChatOrder(MESSAGES, guide_by_task=False), labels) is None
    assert form_of(ChatOrder(MESSAGES, response_format={"type": "text"}), extraction) is None
    assert form_of(ChatOrder(MESSAGES, response_format={"type": "json_object"}), labels) == AnswerForm(
        schema={"type": "object"}
    )
    asked = {"type": "json_schema", "json_schema": {"schema": NUMBERS}}
    assert form_of(ChatOrder(MESSAGES, response_format=asked), None) == AnswerForm(schema=NUMBERS)
    assert form_of(ChatOrder(MESSAGES, guided={"guided_choice": ["a", "b"]}), extraction) == AnswerForm(
        labels=frozenset("ab")
    )
    assert form_of(TextOrder(["x"], guided={"guided_json": NUMBERS}), None) == AnswerForm(schema=NUMBERS)
    assert form_of(TextOrder(["x"], guided={"guided_regex": "a+"}), None) is None
    assert form_of(TextOrder(["x"]), extraction) is None, "a text that is continued is no answer to the task"
    tool = {"type": "function", "function": {"name": "ping"}}
    assert form_of(ChatOrder(MESSAGES, tools=[tool]), extraction) == AnswerForm(has_tools=True)
    for wrong in ({"guided_choice": 5}, {"guided_json": "{"}, {"guided_grammar": 7}):
        form_of(ChatOrder(MESSAGES, guided=wrong), None)  # the engine refuses these; nothing breaks here before
