# SPDX-License-Identifier: Apache-2.0
"""Whether the strings that answers copy stand in them as they do in the input: one after the other, none twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from open_autoglm.data.answers import COPIED, parse_answer
from open_autoglm.words import find_whole_words

_LOOKED_AT: Final = 20_000
_LEAST: Final = 50
_SHARE: Final = 0.995


def copies_in_order(pairs: Iterable[tuple[str, str]], schema: Mapping[str, Any]) -> bool:
    """Whether answers copy from left to right: each string from behind the one before it.

    pairs: inputs and their answers, which fit the schema; the first twenty thousand are looked at. True where 99.5% of
    at least fifty answers with several copied strings have them in that order.
    """
    several = right = 0
    for text, answer in islice(pairs, _LOOKED_AT):
        copied = list(_copied_strings(parse_answer(answer), schema))
        if len(copied) > 1:
            several += 1
            right += _is_in_order(copied, text)
    return several >= _LEAST and right >= _SHARE * several


def _is_in_order(copied: Iterable[str], text: str) -> bool:
    """Whether each string is found behind the one before, each taken as early as can be."""
    behind = 0
    for value in copied:
        end = next((end for start, end in find_whole_words(value, text) if start >= behind), None)
        if end is None:
            return False
        behind = end
    return True


def _copied_strings(value: Any, schema: Any) -> Iterator[str]:
    """The copied strings of an answer, in the order in which they are written."""
    options = schema.get("anyOf", [schema]) if isinstance(schema, dict) else []
    if isinstance(value, str):
        if any(option.get(COPIED) for option in options):
            yield value
    elif isinstance(value, dict):
        for option in (option for option in options if option.get("type") == "object"):
            for name, inner in value.items():
                yield from _copied_strings(inner, option["properties"].get(name, option.get("additionalProperties")))
    elif isinstance(value, list):
        for option in (option for option in options if option.get("type") == "array"):
            for inner in value:
                yield from _copied_strings(inner, option.get("items"))
