# SPDX-License-Identifier: Apache-2.0
"""Which columns hold what: by the user's word, by the names that people use, or by what is in them."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from open_autoglm.data.json_text import load_json
from open_autoglm.errors import ConfigurationError

_ALIASES: Final = {
    "input": ("prompt", "question", "query", "text", "instruction", "输入", "问题", "文本", "指令"),
    "output": ("response", "answer", "label", "target", "completion", "chosen", "输出", "回答", "答案", "标签"),
    "context": ("passage", "document", "上下文", "段落"),
    "rejected": ("rejected_response",),
    "second": ("hypothesis", "text_b"),
    "tag": ("kto_tag", "desirable"),
    "system": ("系统",),
    "history": ("历史",),
    "messages": ("conversations", "dialogue", "对话"),
}
_ROLES: Final = {name: role for role, aliases in _ALIASES.items() for name in (role, *aliases)}
_SAMPLE: Final = 2000
_WORDY_ITEM: Final = 25
_BOOLEANS: Final = (
    *({"0", "1"}, {"0", "1.0"}, {"true", "false"}, {"yes", "no"}, {"y", "n"}, {"t", "f"}, {"-1", "1"}),
    *({"positive", "negative"}, {"是", "否"}, {"有", "无"}, {"对", "错"}, {"正", "负"}),
)
_REQUEST: Final = re.compile(
    r"(what|which|who|whom|whose|when|where|why|how|is|are|was|were|do|does|did|can|could|would|will|should|please|write|"
    r"explain|describe|give|list|create|generate|translate|summari[sz]e|find|tell|make|suggest|name|identify|compare|"
    r"classify|rewrite|convert|calculate|design|provide|discuss|compose|construct|develop|add|play|book|rate)\b"
    r"|请|写|如何|怎么|怎样|什么|为什么|为何|谁|哪|多少|几|描述|解释|列出|给出|给我|生成|创建|翻译|总结|概括|分析|比较|判断|"
    r"编写|撰写|设计|计算|根据|提供|说明|介绍|讨论|将|把|帮|你|是否|能否|识别|找出|改写|用|在",
    re.IGNORECASE,
)


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
                raise ConfigurationError(
                    f"--columns: unknown role '{role}'; write input=NAME output=NAME (roles: {', '.join(_ALIASES)})"
                )
            if known in chosen:
                raise ConfigurationError(f"--columns: {known} is given twice ('{chosen[known]}' and '{name}')")
            chosen[known] = name
    return chosen


def check_columns(chosen: Mapping[str, str], columns: Sequence[str], file: str) -> dict[str, str]:
    """The columns that the user chose, by role; of several output columns, with commas between them, all.

    Raises ConfigurationError for an unknown role, and for a column that the file does not have, with those it has.
    """
    found: dict[str, str] = {}
    for role, name in chosen.items():
        known = _role_of(role)
        if known is None:
            raise ConfigurationError(f"columns: unknown role '{role}'; use {', '.join(_ALIASES)}")
        listed = [part.strip() for part in re.split("[,，]", name)]
        if known == "output" and name not in columns and len(listed) > 1:
            found[known] = ",".join(_exact_name(part, columns, file) for part in listed)
        else:
            found[known] = _exact_name(name, columns, file)
    for role, name in found.items():
        if twice := [other for other, second in found.items() if second == name and other != role]:
            raise ConfigurationError(f"--columns: '{name}' cannot be both {role} and {twice[0]}")
    return found


def _role_of(role: str) -> str | None:
    return _ROLES.get(role.strip().lower())


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
    return _find_named(tuple(names), tuple(columns))


@lru_cache(1024)
def _find_named(names: tuple[str, ...], columns: tuple[str, ...]) -> str | None:
    """Remembered, since it is asked of each row, and rows have the same columns."""
    folded = {column.strip().casefold(): column for column in reversed(columns)}
    return next((folded[name] for name in names if name in folded), None)


@dataclass(frozen=True)
class ColumnProfile:
    """What is in a column, from its first rows.

    filled: share of rows with a value. distinct: how many different ones per filled row. length: mean characters.
    asks: share of questions and requests. is_id: no two values are the same, and they are numbers or single words.
    """

    name: str
    filled: float
    distinct: float
    distinct_count: int
    length: float
    is_numeric: bool
    is_json: bool
    is_wordy: bool
    asks: float = 0.0
    is_id: bool = False
    is_boolean: bool = False

    @property
    def is_text(self) -> bool:
        """Sentences: long enough, mostly different, with words."""
        varied = self.distinct > 0.3 or self.length > 60
        return not self.is_numeric and not self.is_json and varied and self.is_wordy

    @property
    def is_label(self) -> bool:
        """A small set of short values, each seen often."""
        return self.length <= 40 and not self.is_json and self.distinct <= 0.34 and 2 <= self.distinct_count <= 1000


def profile_column(name: str, values: Sequence[Any]) -> ColumnProfile:
    """Look at a column's values."""
    texts = [text for text in (_shown(value).strip() for value in values[:_SAMPLE]) if text]
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
        asks=sum(map(is_request, texts)) / count,
        is_id=kinds == len(texts) > 2 and all(map(_is_token, texts)),
        is_boolean=kinds == 2 and {text.casefold() for text in texts} in _BOOLEANS,
    )


def is_request(text: str) -> bool:
    """Whether a text asks for something: it ends in a question mark, or begins as questions and orders do."""
    return text.rstrip("\"'”」』)） ").endswith(("?", "？", "؟")) or _REQUEST.match(text.lstrip()) is not None


def _shown(value: Any) -> str:
    """A cell as text; a list of sentences as the text that they make up."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        joined = " ".join(value)
        return joined if len(joined) > _WORDY_ITEM * len(value) else value_text(value)
    return value_text(value)


def _is_token(text: str) -> bool:
    return len(text) <= 64 and " " not in text and not any(map(_is_wide, text)) and not _is_fraction(text)


def _is_fraction(text: str) -> bool:
    return _is_number(text) and not text.lstrip("-").isdigit()


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
        load_json(stripped)
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
