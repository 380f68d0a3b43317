# SPDX-License-Identifier: Apache-2.0
"""The language of `when`: what holds, what is refused before it runs, and what cannot be decided."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.conditions import parse_condition

NAMES: dict[str, Any] = {
    "payload": {"score": 0.4, "items": [1, 2], "text": "Hello", "deep": {"list": [{"x": 7}]}, "none": None, "keys": 3},
    "metadata": {"language": "en"},
    "run": {"pipeline": "p"},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("payload.score < 0.5", True),
        ("payload.score < 0.5 and not payload.none", True),
        ("0.3 < payload.score <= 0.4", True),
        ("payload.deep.list[0].x == 7", True),
        ("payload['text']|lower == 'hello'", True),
        ("payload.items|length > 2", False),
        ("2 in payload.items", True),
        ("metadata.language in ['en', 'zh']", True),
        ("metadata.language not in ('en', 'zh')", False),
        ("payload.nothing is defined", False),
        ("payload.nothing is defined and payload.nothing > 1", False),
        ("payload.none is none", True),
        ("payload.keys == 3", True),
        ("payload.values is defined", False),
        ("run.pipeline == 'p' if payload.score > 1 else true", True),
        ("payload.score + 1 - 2 < 0", True),
        ("payload.nothing|default(3) == 3", True),
        ("-payload.score < 0", True),
    ],
)
def test_what_holds(text: str, holds: bool) -> None:
    assert parse_condition(text)(NAMES) is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a condition"),
        ("payload.", "not a condition"),
        ("payload }} {{ payload", "one expression"),
        ("payload }}{% for x in payload %}{% endfor %}{{ 1", "one expression"),
        ("range(10)", "cannot hold a call|unknown name 'range'"),
        ("payload.text.upper()", "cannot hold a call"),
        ("''.__class__", "'__class__' cannot be looked at"),
        ("payload._x", "'_x' cannot be looked at"),
        ("2 ** 9999999", "cannot hold a pow"),
        ("'x' * 999999999", "cannot hold a mul"),
        ("payload.text % 5", "cannot hold a mod"),
        ("payload.text ~ 'x'", "cannot hold a concat"),
        ("payload.x|attr('y')", "unknown filter 'attr'"),
        ("payload.x|lowr", "unknown filter 'lowr'; did you mean 'lower'"),
        ("payload.x is callable", "unknown test 'callable'"),
        ("payloads.x", "unknown name 'payloads'; did you mean 'payload'"),
        ("payload.x" + " and payload.x" * 100, "may have 1000 characters"),
        ("(" * 300 + "1" + ")" * 300, "nested too deep|not a condition|cannot"),
    ],
)
def test_what_is_refused_before_it_runs(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_condition(text)({"payload": {}})
        pytest.fail("it was taken")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("payload.nothing > 1", "asks for something that the packet lacks.*is defined"),
        ("payload.text > 1", "cannot be decided: '>' not supported"),
        ("payload.score|length > 1", "cannot be decided"),
    ],
)
def test_what_cannot_be_decided(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse_condition(text)(NAMES)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="payload.metadata[]()|'\"0159 <>=!{}%#_+-*/,:andornti", max_size=40))
def test_anything_is_a_condition_or_a_clear_error(text: str) -> None:
    try:
        assert parse_condition(text)(NAMES) in (True, False)
    except PipelineError as error:
        assert str(error)
