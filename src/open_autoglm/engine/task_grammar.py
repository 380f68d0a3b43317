# SPDX-License-Identifier: Apache-2.0
"""A task's answer schema as a Lark grammar: keys in any order, each at most once, and strings copied from the input.

JSON is laid out as `json.dumps(answer, ensure_ascii=False, separators=(", ", ": "))` does, since that is what a model
was trained on. Keys in any order use the parametric rules of llguidance: a rule carries 64 bits, a set of the keys
that are already there and a count of those that the schema does not name.
"""

from __future__ import annotations

import json
from typing import Any, Final

from open_autoglm.engine.copied_strings import CopyShape
from open_autoglm.errors import ConfigurationError
from open_autoglm.task import Task
from open_autoglm.words import split_words

_MAX_FREE_KEYS: Final = 64
_MAX_OPEN_KEYS: Final = 32
_COUNT_BITS: Final = 6
_MAX_DEPTH: Final = 32
_MAX_RULES: Final = 8192
_MAX_INPUT: Final = 100_000

_TERMINALS: Final[dict[str, str]] = {
    "STRING": r"""/"([^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00[01][0-9a-f])*"/""",
    "ANY_KEY": r"""/"([^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00[01][0-9a-f]){1,64}"/""",
    "INTEGER": r"/-?(0|[1-9][0-9]{0,18})/",
    "NUMBER": r"/-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,20})?(e[+-][0-9]{2,3})?/",
}
_ANY_TEXT: Final = r"""/([^"\\\x00-\x1f]|\\["\\bfnrt]|\\u00[01][0-9a-f])+/"""
_ANNOTATIONS: Final = frozenset(
    ("$schema", "$id", "$comment", "title", "description", "default", "examples", "additionalProperties")
)


def has_task_guide(task: Task | None) -> bool:
    """Whether the answers of a task have a form that decoding can keep to."""
    return task is not None and bool(task.labels or task.answer_schema is not None)


class TaskGrammar:
    """The Lark grammars of all valid answers of one task, written once but for the words of the input.

    A classification's answer is one of its labels, as plain text. Otherwise the answer fits `answer_schema`:
    objects, arrays, strings, enums, constants, numbers, integers, booleans, null and `anyOf`. An `x-free-order`
    object takes its keys in any order (one with more than 64 keys, in the schema's order). An object with a schema
    for `additionalProperties` takes up to 32 keys of at most 64 characters that it does not name, wherever a key may
    stand if the order is free, and else after the others. An `x-copied` string is a
    run of whole words of the input that neither begins nor ends in white space; it is any string when the input has no
    words or more than 100,000 characters.
    Raises ConfigurationError for a schema that uses anything else.
    """

    def __init__(self, task: Task) -> None:
        self.depends_on_input = False
        """Whether the grammar differs from input to input."""
        self.shape: CopyShape | None = None
        """Where strings are copied, if `CopiedStrings` can follow them beside `text_of_any`."""
        self.in_order = bool((task.answer_schema or {}).get("x-copied-in-order"))
        """Whether they are copied from left to right. Only `CopiedStrings` holds answers to that."""
        if task.labels:
            self._with_words = self._without = "start: " + "\n  | ".join(_literal(label) for label in task.labels)
            return
        if task.answer_schema is None:
            raise ConfigurationError(f"a task of kind {task.kind} has no form of answer to guide decoding with")
        writer = _GrammarWriter(copies=True)
        self._with_words = writer.grammar(task.answer_schema)
        self._without = _GrammarWriter(copies=False).grammar(task.answer_schema)
        self.depends_on_input = writer.has_copied
        if self.depends_on_input:
            self.shape = CopyShape.of(task.answer_schema)

    def words(self, input_text: str) -> list[str]:
        """The words of an input that strings are copied from; none where any string will do."""
        words = split_words(input_text) if self.depends_on_input and len(input_text) <= _MAX_INPUT else []
        return words if any(word.strip() for word in words) else []

    def text_of_any(self) -> str:
        """The grammar in which a copied string is any text that is not empty."""
        return self._with_words + f"COPIED: {_ANY_TEXT}\n"

    def text(self, input_text: str) -> str:
        """The grammar of all valid answers to an input."""
        words = self.words(input_text)
        if not words:
            return self._without
        escaped = [json.dumps(word, ensure_ascii=False)[1:-1] for word in words]
        return self._with_words + "".join(f"{name}: {rule}\n" for name, rule in _run_of_words(escaped).items())


def substring_grammar(text: str) -> str:
    """The Lark grammar of all runs of whole words of `text` that neither begin nor end in white space."""
    return "start: COPIED\n" + "\n".join(f"{name}: {rule}" for name, rule in _run_of_words(split_words(text)).items())


def _run_of_words(words: list[str]) -> dict[str, str]:
    """The terminal COPIED, and what it needs."""
    return {
        "RUN_OF_WORDS": "%regex " + json.dumps({"substring_chunks": words}),
        "COPIED": r"RUN_OF_WORDS & /\S((.|\n)*\S)?/",
    }


class _GrammarWriter:
    """Writes all of a grammar but the terminal COPIED.

    copies: strings may be copied from an input. has_copied: some are.
    """

    def __init__(self, *, copies: bool) -> None:
        self._rules: list[str] = []
        self._named: dict[str, str] = {}
        self._terminals: dict[str, str] = {}
        self._copies, self.has_copied = copies, False

    def grammar(self, schema: dict[str, Any]) -> str:
        self._rules.append("start: " + self._value(schema, 0))
        if len(self._rules) > _MAX_RULES:
            raise ConfigurationError("answer_schema is too large to guide decoding with")
        terminals = [f"{name}: {pattern}" for name, pattern in self._terminals.items()]
        return "\n".join([*self._rules, *terminals]) + "\n"

    def _value(self, schema: Any, depth: int) -> str:
        """The name of a rule or terminal, or a literal, for the values of a schema."""
        if depth > _MAX_DEPTH:
            raise ConfigurationError(f"answer_schema is nested more than {_MAX_DEPTH} deep")
        if schema is True or schema == {}:
            raise ConfigurationError("answer_schema: a value without a type cannot be guided")
        if not isinstance(schema, dict):
            raise ConfigurationError(f"answer_schema: {schema!r} is not a schema")
        if "const" in schema:
            return _json_literal(schema["const"])
        if "enum" in schema:
            return self._any_of([_json_literal(value) for value in schema["enum"]])
        if "anyOf" in schema:
            _refuse_others(schema, {"anyOf"})
            return self._any_of([self._value(option, depth + 1) for option in schema["anyOf"]])
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._any_of([self._value({**schema, "type": one}, depth + 1) for one in kind])
        match kind:
            case "object":
                _refuse_others(schema, {"type", "properties", "required"})
                return self._object(schema, depth)
            case "array":
                _refuse_others(schema, {"type", "items", "minItems", "maxItems"})
                return self._array(schema, depth)
            case "string":
                _refuse_others(schema, {"type"})
                return self._copied() if schema.get("x-copied") else self._terminal("STRING")
            case "integer" | "number":
                _refuse_others(schema, {"type"})
                return self._terminal(kind.upper())
            case "boolean":
                return self._any_of(['"true"', '"false"'])
            case "null":
                return '"null"'
        raise ConfigurationError(f"answer_schema: the type {kind!r} is not supported")

    def _object(self, schema: dict[str, Any], depth: int) -> str:
        properties = schema.get("properties") or {}
        required = list(schema.get("required") or ())
        if unknown := [name for name in required if name not in properties]:
            raise ConfigurationError(f"answer_schema: the required key {unknown[0]!r} has no schema")
        others = schema.get("additionalProperties")
        others = others if isinstance(others, dict) and others else None
        if not properties and others is None:
            return '"{}"'
        pairs = {
            name: f"{_literal(json.dumps(name, ensure_ascii=False) + ': ')} {self._value(inner, depth + 1)}"
            for name, inner in properties.items()
        }
        other = self._other_pair(list(pairs), others, depth) if others is not None else None
        ordered = sorted(pairs, key=lambda name: name not in required)
        num_required = len(set(required))
        if schema.get("x-free-order") and other is not None and num_required <= _MAX_FREE_KEYS - _COUNT_BITS:
            return self._open_object([pairs[name] for name in ordered], num_required, other)
        if schema.get("x-free-order") and len(pairs) <= _MAX_FREE_KEYS and other is None:
            return self._free_object([pairs[name] for name in ordered], num_required)
        return self._ordered_object([(pair, name in required) for name, pair in pairs.items()], other)

    def _other_pair(self, known: list[str], values: dict[str, Any], depth: int) -> str:
        """A key that is none of the known ones, with its value."""
        value = self._value(values, depth + 1)
        key = self._terminal("ANY_KEY")
        if known:
            number = len(self._terminals)
            literals = "\n  | ".join(_literal(json.dumps(name, ensure_ascii=False)) for name in known)
            self._terminals[f"KNOWN_KEY_{number}"] = literals
            self._terminals[key := f"OTHER_KEY_{number}"] = f"ANY_KEY & ~KNOWN_KEY_{number}"
        name = self._new_name()
        self._rules.append(f'{name}: {key} ": " {value}')
        return name

    def _open_object(self, pairs: list[str], num_required: int, other: str) -> str:
        """As `_free_object`; the last bits count the keys that are not named, and those for which no bit is left."""
        name = self._new_name()
        last = _MAX_FREE_KEYS
        count = f"[{last - _COUNT_BITS}:{last}]"
        tracked = pairs[: last - _COUNT_BITS]
        may_end = f" %if is_ones([0:{num_required}])" if num_required else ""
        first = f"{name}_pair::0x0" if num_required else f'(""| {name}_pair::0x0)'
        self._rules.append(f'{name}: "{{" {first} "}}"')
        options = [f"{pair} {name}_rest::set_bit({bit}) %if bit_clear({bit})" for bit, pair in enumerate(tracked)]
        options += [
            f"{pair} {name}_rest::incr({count}) %if lt({count}, {_MAX_OPEN_KEYS})"
            for pair in (*pairs[len(tracked) :], other)
        ]
        self._rules.append(f"{name}_pair::_: " + "\n  | ".join(options))
        # With every named key there and no more of the others, a comma would lead nowhere.
        full = (
            f"and(is_ones([0:{len(tracked)}]), ge({count}, {_MAX_OPEN_KEYS}))"
            if tracked
            else f"ge({count}, {_MAX_OPEN_KEYS})"
        )
        self._rules.append(f'{name}_rest::_: ""{may_end}\n  | ", " {name}_pair::_ %if not({full})')
        return name

    def _free_object(self, pairs: list[str], num_required: int) -> str:
        """Bit i of the parameter says that pair i is there; the required ones have the first bits."""
        name = self._new_name()
        may_end = f" %if is_ones([0:{num_required}])" if num_required else ""
        first = f"{name}_pair::0x0" if num_required else f'(""| {name}_pair::0x0)'
        self._rules.append(f'{name}: "{{" {first} "}}"')
        options = [f"{pair} {name}_rest::set_bit({bit}) %if bit_clear({bit})" for bit, pair in enumerate(pairs)]
        self._rules.append(f"{name}_pair::_: " + "\n  | ".join(options))
        self._rules.append(f'{name}_rest::_: ""{may_end}\n  | ", " {name}_pair::_ %if not(is_ones([0:{len(pairs)}]))')
        return name

    def _ordered_object(self, pairs: list[tuple[str, bool]], other: str | None) -> str:
        """`_first_i` goes on with pair i when none has been written yet, `_next_i` when one has; others come last."""
        name = self._new_name()
        self._rules.append(f'{name}: "{{" {name}_first_0 "}}"')
        for index, (pair, required) in enumerate(pairs):
            skip_first = "" if required else f" | {name}_first_{index + 1}"
            skip_next = "" if required else f" | {name}_next_{index + 1}"
            self._rules.append(f"{name}_first_{index}: {pair} {name}_next_{index + 1}{skip_first}")
            self._rules.append(f'{name}_next_{index}: ", " {pair} {name}_next_{index + 1}{skip_next}')
        further = "" if other is None else f'\n  | {other} (", " {other}){{0,{_MAX_OPEN_KEYS - 1}}}'
        self._rules.append(f'{name}_first_{len(pairs)}: ""{further}')
        further = "" if other is None else f'\n  | (", " {other}){{1,{_MAX_OPEN_KEYS}}}'
        self._rules.append(f'{name}_next_{len(pairs)}: ""{further}')
        return name

    def _array(self, schema: dict[str, Any], depth: int) -> str:
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        if not 0 <= low <= 10_000 or (high is not None and not low <= high <= 10_000):
            raise ConfigurationError("answer_schema: minItems and maxItems must be in order and at most 10000")
        if high == 0:
            return '"[]"'
        if "items" not in schema:
            raise ConfigurationError("answer_schema: an array without 'items' cannot be guided")
        item = self._value(schema["items"], depth + 1)
        further = f'(", " {item}){{{max(0, low - 1)},{"" if high is None else high - 1}}}'
        empty = '"[]" | ' if low == 0 else ""
        return self._rule(f'{empty}"[" {item} {further} "]"')

    def _copied(self) -> str:
        if not self._copies:
            return self._terminal("STRING")
        if not self.has_copied:
            self.has_copied = True
            self._rules.append('copied: "\\"" COPIED "\\""')
        return "copied"

    def _any_of(self, options: list[str]) -> str:
        if not options:
            raise ConfigurationError("answer_schema: an empty list of options fits no answer")
        return self._rule("\n  | ".join(dict.fromkeys(options)))

    def _rule(self, body: str) -> str:
        """The name of the rule with this body. Equal ones are one: less to compile for each input."""
        name = self._named.get(body)
        if name is None:
            name = self._named[body] = self._new_name()
            self._rules.append(f"{name}: {body}")
        return name

    def _terminal(self, name: str) -> str:
        self._terminals[name] = _TERMINALS[name]
        return name

    def _new_name(self) -> str:
        return f"value_{len(self._rules)}"


def _refuse_others(schema: dict[str, Any], known: set[str]) -> None:
    for keyword in schema:
        if keyword not in known and keyword not in _ANNOTATIONS and not keyword.startswith("x-"):
            raise ConfigurationError(f"answer_schema: the keyword {keyword!r} is not supported")


def _json_literal(value: Any) -> str:
    return _literal(json.dumps(value, ensure_ascii=False, separators=(", ", ": ")))


def _literal(text: str) -> str:
    """A Lark string that matches `text` exactly; an empty one matches nothing written."""
    return json.dumps(text, ensure_ascii=False)
