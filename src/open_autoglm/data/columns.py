# SPDX-License-Identifier: Apache-2.0
"""Which columns hold what: by the user's word, by the names that people use, or by what is in them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.errors import ConfigurationError

_ROLES: Final = ("input", "output")
_INPUT_ALIASES: Final = ("input", "prompt", "question", "query", "text", "instruction", "输入")
_OUTPUT_ALIASES: Final = ("output", "response", "answer", "label", "target", "completion", "输出")
_SAMPLE: Final = 2000


def parse_columns(arguments: Sequence[str]) -> dict[str, str]:
    """`["input=内容 output=标签"]` or one pair per argument -> `{"input": "内容", "output": "标签"}`.

    Pairs are separated by spaces or commas; a name with either in it goes in an argument of its own. The left side
    may also be a usual name for the role, such as `question` or `answer`.
    Raises ConfigurationError for anything else.
    """
    chosen: dict[str, str] = {}
    for argument in arguments:
        # Cut only where a new `role=` begins, so that column names may hold spaces and commas.
        for pair in re.split(r"[\s,，;；]+(?=\w+=)", argument.strip()):
            role, equals, name = (part.strip() for part in pair.strip(" ,，;；").partition("="))
            if not equals or not role or not name:
                raise ConfigurationError(f"--columns '{argument}' is not like input=NAME output=NAME")
            known = _role_of(role)
            if known is None:
                raise ConfigurationError(f"--columns: unknown role '{role}'; write input=NAME output=NAME")
            if known in chosen:
                raise ConfigurationError(f"--columns: {known} is given twice ('{chosen[known]}' and '{name}')")
            chosen[known] = name
    return chosen


def check_columns(chosen: Mapping[str, str], columns: Sequence[str], file: str) -> tuple[str | None, str | None]:
    """The input and output column that the user chose.

    Raises ConfigurationError for an unknown role, and for a column that the file does not have, with those it has.
    """
    found: dict[str, str] = {}
    for role, name in chosen.items():
        known = _role_of(role)
        if known is None:
            raise ConfigurationError(f"columns: unknown role '{role}'; use {' and '.join(_ROLES)}")
        found[known] = _exact_name(name, columns, file)
    if "input" in found and found["input"] == found.get("output"):
        raise ConfigurationError(f"--columns: '{found['input']}' cannot be both input and output")
    return found.get("input"), found.get("output")


def _role_of(role: str) -> str | None:
    lowered = role.lower()
    if lowered in _INPUT_ALIASES:
        return "input"
    return "output" if lowered in _OUTPUT_ALIASES else None


def _exact_name(name: str, columns: Sequence[str], file: str) -> str:
    if name in columns:
        return name
    if not columns:
        raise ConfigurationError(f"{file} has no columns, it is plain text; leave --columns out")
    folded = {column.strip().casefold(): column for column in columns}
    if name.strip().casefold() in folded:
        return folded[name.strip().casefold()]
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    hint = f"did you mean '{folded[close[0]]}'? " if close else ""
    raise ConfigurationError(f"{file} has no column '{name}'; {hint}it has: {', '.join(columns)}")


def find_named(names: Iterable[str], columns: Sequence[str]) -> str | None:
    """The column with the first of `names` that the file has; case and outer spaces do not count."""
    folded = {column.strip().casefold(): column for column in reversed(columns)}
    return next((folded[name] for name in names if name in folded), None)


@dataclass(frozen=True)
class ColumnProfile:
    """What is in a column, from its first rows.

    filled: share of rows with a value. distinct: how many different ones per filled row. length: mean characters.
    """

    name: str
    filled: float
    distinct: float
    distinct_count: int
    length: float
    is_numeric: bool
    is_json: bool
    is_wordy: bool

    @property
    def is_text(self) -> bool:
        """Sentences: long enough, mostly different, with words."""
        return not self.is_numeric and not self.is_json and self.distinct > 0.3 and self.is_wordy

    @property
    def is_label(self) -> bool:
        """A small set of short values, each seen often."""
        return self.length <= 40 and not self.is_json and self.distinct <= 0.34 and 2 <= self.distinct_count <= 1000


def profile_column(name: str, values: Sequence[Any]) -> ColumnProfile:
    """Look at a column's values."""
    texts = [text for text in (value_text(value).strip() for value in values[:_SAMPLE]) if text]
    count = max(1, len(texts))
    kinds = len(set(texts))
    mean = sum(map(len, texts)) / count
    wordy = sum(len(text.split()) >= 4 or sum(_is_wide(c) for c in text) >= 6 for text in texts) / count
    return ColumnProfile(
        name,
        filled=len(texts) / max(1, min(len(values), _SAMPLE)),
        distinct=kinds / count,
        distinct_count=kinds,
        length=mean,
        is_numeric=bool(texts) and all(_is_number(text) for text in texts),
        is_json=sum(is_json_container(text) for text in texts[:200]) > 0.9 * max(1, min(200, len(texts))),
        is_wordy=wordy > 0.5,
    )


def value_text(value: Any) -> str:
    """A cell as text: strings as they are, nothing for null, JSON for the rest."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def is_json_container(text: str) -> bool:
    """Whether a text is a JSON object or array."""
    stripped = text.strip()
    if not stripped.startswith(("{", "[")) or not stripped.endswith(("}", "]")):
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_wide(character: str) -> bool:
    return "\u3040" <= character <= "\u9fff" or "\uac00" <= character <= "\ud7af"
