# SPDX-License-Identifier: Apache-2.0
"""What all answers have in common: the labels of a classification, the JSON schema of an extraction."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from open_autoglm.data.answers import COPIED, COPIED_IN_ORDER, FREE_ORDER, parse_answer
from open_autoglm.data.copy_order import copies_in_order
from open_autoglm.data.example import Example
from open_autoglm.data.example_store import pairs_of
from open_autoglm.errors import DataError
from open_autoglm.words import is_copied, is_spaceless

_COPIED_SHARE: Final = 0.995
_COPIED_LEAST: Final = 20
_ENUM_VALUES: Final = 256
_ENUM_PER_VALUE: Final = 8
_OPEN_KEYS: Final = 0.02
_OPEN_LEAST: Final = 10
_ARRAYS_LEAST: Final = 20
_FORMAT_LEAST: Final = 20
FORMAT: Final = "x-format"
_FORMATS: Final = {
    "date": r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
    "date-time": r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?",
    "time": r"([01]?\d|2[0-3]):[0-5]\d(:[0-5]\d)?",
    "email": r"[^@\s]+@[^@\s]+\.[^@\s]+",
    "uri": r"[a-z][a-z0-9+.-]*://\S+",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
_REORDERED_SHARE: Final = 0.005
_TOGETHER: Final = 4096
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def infer_labels(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels, most frequent first; equally frequent ones in the order of first use."""
    return tuple(label for label, _ in Counter(answer.strip() for _, answer in pairs_of(examples)).most_common())


def infer_answer_schema(examples: Sequence[Example]) -> dict[str, Any]:
    """A JSON schema that every answer fits, and no wider than they show.

    * An object's keys are those seen, required if in every one; other keys may come where the estimated chance of a
      new one is above 2% (keys seen once / keys seen), and their values are then like the others'. The order of keys
      is free when none is required, or when two change places in more than 0.5% of the objects that have both.
    * A string that was seen 20 times, and is whole words of the last user message in 99.5% of them, is `x-copied`:
      unseen words are as good as seen ones. `x-copied-in-order` says that answers copy from left to right.
    * Another string is an enum when its values are a closed set: eight rows per value, and none seen only once, so
      that the estimated chance of a new one is nil (Good 1953).
    * `x-format` names the form that all of at least 20 other strings have: date, date-time, time, email, uri, uuid.
    * An array may be empty unless 20 were seen and none was.
    Raises DataError for an answer that is not a JSON object or array.
    """
    root = _Seen()
    for place, (text, answer) in enumerate(pairs_of(examples)):
        try:
            value = parse_answer(answer)
        except ValueError as error:
            source = examples[place].source
            raise DataError(f"{source}: the answer is not a JSON object or array ({error})") from None
        root.add(value, f" {text} ")
    root.count_strings()
    schema = root.schema()
    in_order = {COPIED_IN_ORDER: True} if copies_in_order(pairs_of(examples), schema) else {}
    return {"$schema": _DIALECT, **schema, **in_order}


@dataclass
class _Seen:
    """All values seen at one place of the answers."""

    types: Counter[str] = field(default_factory=Counter)
    strings: Counter[str] = field(default_factory=Counter)
    copied: int = 0
    keys: dict[str, _Seen] = field(default_factory=dict)
    orders: Counter[tuple[str, ...]] = field(default_factory=Counter)
    items: _Seen | None = None
    shortest: int | None = None
    _new: list[str] = field(default_factory=list)

    def add(self, value: Any, text: str) -> None:
        """Count a value of an answer. text: what is answered, between two spaces."""
        if isinstance(value, str):
            if not self._new:
                self.types["string"] += 0  # the first of a kind has its place
            self._new.append(value)
            if len(self._new) == _TOGETHER:
                self.count_strings()
            if value and value in text:
                # Words between spaces are whole ones, which most are: seen at once.
                whole = f" {value} " in text or is_copied(value, text[1:-1])
                self.copied += whole and value == value.strip()  # a guide copies no white space at the ends
        elif isinstance(value, dict):
            self.types["object"] += 1
            keys = self.keys
            for name, inner in value.items():
                seen = keys.get(name)
                if seen is None:
                    seen = keys[name] = _Seen()
                seen.add(inner, text)
            self.orders[tuple(value)] += 1
        elif isinstance(value, list):
            self.types["array"] += 1
            self.shortest = len(value) if self.shortest is None else min(self.shortest, len(value))
            self.items = self.items or _Seen()
            for item in value:
                self.items.add(item, text)
        elif value is None:
            self.types["null"] += 1
        elif isinstance(value, bool):
            self.types["boolean"] += 1
        else:
            self.types["integer" if isinstance(value, int) else "number"] += 1

    def count_strings(self) -> None:
        """Count the strings seen since the last time, here and below: together they are counted faster."""
        if self._new:
            self.types["string"] += len(self._new)
            self.strings.update(self._new)
            self._new.clear()
        for inner in (*self.keys.values(), *([] if self.items is None else [self.items])):
            inner.count_strings()

    def schema(self) -> dict[str, Any]:
        """What was seen here, as a JSON schema."""
        bare = self.items is not None and self.types["string"] > 0
        makers: dict[str, Callable[[], dict[str, Any]]] = {
            "string": lambda: self._string(self.items if bare else None),
            "array": self._array,
            "object": self._object,
        }
        kinds = [kind for kind, _ in self.types.most_common() if not (kind == "integer" and self.types["number"])]
        branches = [makers[kind]() if kind in makers else {"type": kind} for kind in kinds]
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def _string(self, twin: _Seen | None = None) -> dict[str, Any]:
        """twin: where the same strings stand too, alone instead of in a list or the other way round."""
        count = self.types["string"]
        seen = count + (twin.types["string"] if twin else 0)
        copied = self.copied + (twin.copied if twin else 0)
        # Where each character is a word, an action such as 退款 stands in many inputs: one that never changes is a
        # constant and no slot.
        varies = len(self.strings) > 1 or twin is not None or not any(map(is_spaceless, *self.strings))
        if varies and seen >= _COPIED_LEAST and copied >= _COPIED_SHARE * seen and self.copied >= _COPIED_SHARE * count:
            return {"type": "string", COPIED: True}
        once = sum(times == 1 for times in self.strings.values())
        closed = not once and count >= _ENUM_PER_VALUE * len(self.strings)
        if closed and len(self.strings) <= _ENUM_VALUES:
            return {"type": "string", "enum": [value for value, _ in self.strings.most_common()]}
        if count >= _FORMAT_LEAST:
            for name, pattern in _FORMATS.items():
                if all(re.fullmatch(pattern, value) for value in self.strings):
                    return {"type": "string", FORMAT: name}
        return {"type": "string"}

    def _array(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "array"}
        if self.items is not None and self.items.types:
            only_strings = set(self.items.types) == {"string"} and self.types["string"] > 0
            schema["items"] = self.items._string(self) if only_strings else self.items.schema()
        else:
            schema["maxItems"] = 0
        # Where a single value stands bare, a list of one was never written; else only emptiness is a kind of its own.
        most = 2 if self.types["string"] else 1
        if self.shortest and (most > 1 or self.types["array"] >= _ARRAYS_LEAST):
            schema["minItems"] = min(self.shortest, most)
        return schema

    def _object(self) -> dict[str, Any]:
        count = self.types["object"]
        required = [name for name in self.keys if sum(self.keys[name].types.values()) == count]
        before = self._before()
        names = self._ordered(before)
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.keys[name].schema() for name in names},
            "required": [name for name in names if name in required],
            "additionalProperties": self._others(),
        }
        if len(names) > 1 and (not required or _is_reordered(before)):
            schema[FREE_ORDER] = True
        return schema

    def _others(self) -> bool | dict[str, Any]:
        """What a key that was never seen may hold: nothing, or what the keys seen hold that are not in every object."""
        times = [sum(seen.types.values()) for seen in self.keys.values()]
        if len(times) < _OPEN_LEAST or times.count(1) <= _OPEN_KEYS * sum(times):
            return False
        count = self.types["object"]
        merged = _Seen()
        for seen in self.keys.values():
            if sum(seen.types.values()) < count:
                merged.merge(seen)
        return merged.schema()

    def merge(self, other: _Seen) -> None:
        """Count all that was seen elsewhere as seen here."""
        self.types += other.types
        self.strings += other.strings
        self.copied += other.copied
        self.orders += other.orders
        for name, seen in other.keys.items():
            self.keys.setdefault(name, _Seen()).merge(seen)
        if other.items is not None:
            self.items = self.items or _Seen()
            self.items.merge(other.items)
        if other.shortest is not None:
            self.shortest = other.shortest if self.shortest is None else min(self.shortest, other.shortest)

    def _before(self) -> Counter[tuple[str, str]]:
        """How often one key stood before another."""
        before: Counter[tuple[str, str]] = Counter()
        for names, times in self.orders.items():
            for pair in itertools.combinations(names, 2):
                before[pair] += times
        return before

    def _ordered(self, before: Counter[tuple[str, str]]) -> list[str]:
        """Keys so that each comes before those that it mostly precedes; first seen first where that leaves a choice."""
        left = list(self.keys)
        ordered: list[str] = []
        while left:
            free = next(
                (name for name in left if not any(before[other, name] > before[name, other] for other in left)),
                left[0],
            )
            ordered.append(free)
            left.remove(free)
        return ordered


def _is_reordered(before: Counter[tuple[str, str]]) -> bool:
    together = sum(before.values())
    against = sum(min(seen, before[later, name]) for (name, later), seen in before.items() if name < later)
    return against > _REORDERED_SHARE * together
