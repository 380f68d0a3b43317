# SPDX-License-Identifier: Apache-2.0
"""The quick reader of JSON gives what Python's own gives, and refuses what that refuses."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.data.json_text import load_json, load_standard_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal, of equal types all the way down, keys in one order."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (one != one and other != other)
    return one == other


def outcome(load: Any, text: Any) -> tuple[str, Any]:
    try:
        return "value", load(text)
    except (ValueError, RecursionError) as error:
        return type(error).__name__, None


def agree(text: str) -> None:
    wanted, value = outcome(json.loads, text)
    found, other = outcome(load_json, text)
    assert found == wanted and same(value, other), text
    is_standard, other = load_standard_json(text)
    assert not is_standard or (wanted == "value" and same(value, other)), text


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_what_python_writes_is_read_as_python_reads_it(value: Any, only_ascii: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=only_ascii, indent=indent)
    agree(text)
    data = text.encode("utf-8", "surrogatepass")
    assert same(load_json(data), json.loads(data))


@given(VALUES, st.data())
def test_broken_texts_are_refused_alike(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    place = data.draw(st.integers(0, len(text)))
    agree(text[:place] + data.draw(st.text('{}[]",:0123456789.eE+-\\u \n\t\0\x01ntf', max_size=3)) + text[place:])
    agree(text[:place])


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "01", "-0", "-0.0", "1.", ".5", "+1", "1e5", "1E400", "-1e-400", "0x1", "1_0", "NaN", "-Infinity"),
        *(
            "9223372036854775808",
            "18446744073709551616",
            "-9223372036854775809",
            "1" * 400,
            "1" * 5000,
            "0." + "1" * 900,
        ),
        *('"\\ud800"', '"\\ud83d\\ude00"', '"\\ud83dx"', '"\x01"', '"\t"', '"\x7f"', '"\\x"', '"\ud800"', '"a', "'a'"),
        *('{"a": 1, "a": 2, "b": 3, "a": 4}', '{"a": 1,}', "[1,]", "[1 2]", '{"a" 1}', "{1: 2}", "[]]", "{} {}", "nul"),
        *("\ufeff1", "1\x00", "\u00a01", "\x0b1", "[1]\n\r\t ", "/* x */ 1", "[" * 40 + "]" * 40, "[" * 100_000),
    ],
)
def test_odd_texts(text: str) -> None:
    agree(text)
