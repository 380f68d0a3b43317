# SPDX-License-Identifier: Apache-2.0
"""The language of `when`: comparisons over the packet, such as `payload.score < 0.5 and "en" in payload.languages`.

It is the part of Jinja's expressions in which nothing can be called, computed without bound or changed: names,
attributes and items, comparisons, `and`, `or`, `not`, `in`, `is`, and a few filters. Jinja reads it, we look at every
node before it may run, and it runs in Jinja's sandbox. Jinja is a dependency already; simpleeval would add one, and CEL
a grammar of its own that users of our chat templates do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from open_autoglm.errors import PipelineError
from open_autoglm.spelling import did_you_mean

NAMES: Final = ("payload", "metadata", "run")
_FILTERS: Final = ("length", "lower", "upper", "first", "last", "default", "int", "float", "string", "abs", "trim")
_TESTS: Final = (
    "defined", "undefined", "none", "string", "number", "boolean", "mapping", "sequence", "in", "eq", "ne", "lt", "le",
    "gt", "ge", "true", "false", "divisibleby", "even", "odd",
)  # fmt: skip
_NODES: Final = (
    "Template", "Output", "And", "Or", "Not", "Compare", "Operand", "Const", "Name", "Getattr", "Getitem", "List",
    "Tuple", "Filter", "Test", "Neg", "Add", "Sub", "CondExpr",
)  # fmt: skip
_LONGEST: Final = 1000
_FILLED: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)

Condition = Callable[[Mapping[str, Any]], bool]
Expression = Callable[[Mapping[str, Any]], Any]
Message = Callable[[Mapping[str, Any]], str]


def parse_condition(text: str, known: tuple[str, ...] = NAMES) -> Condition:
    """A function of the names in `known` that says whether the condition holds.

    Raises PipelineError for what is not in the language; so does the function when the packet lacks what is asked
    for, or values cannot be compared.
    """
    value_of = parse_expression(text, known)
    return lambda names: bool(value_of(names))


def parse_message(text: str, known: tuple[str, ...] = NAMES) -> Message:
    """A function of the names in `known` that fills in a text: each `{{ expression }}` in it is its value.

    Mappings and lists come as JSON. Raises PipelineError as `parse_condition` does.
    """
    parts: list[str | Expression] = []
    for number, part in enumerate(_FILLED.split(text)):
        parts.append(part if number % 2 == 0 else parse_expression(part.strip(), known))

    def filled(names: Mapping[str, Any]) -> str:
        return "".join(part if isinstance(part, str) else _shown(part(names)) for part in parts)

    return filled


def parse_expression(text: str, known: tuple[str, ...] = NAMES) -> Expression:
    """A function of the names in `known` with the expression's value. Raises what `parse_condition` raises."""
    from jinja2 import StrictUndefined, TemplateError, nodes
    from jinja2.exceptions import UndefinedError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if len(text) > _LONGEST:
        raise PipelineError(f"a condition may have {_LONGEST} characters, not {len(text)}")

    class Environment(ImmutableSandboxedEnvironment):
        """Names after a dot are keys of mappings, never methods: `payload.items` is what the packet calls items."""

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, Mapping) and attribute in obj:
                return obj[attribute]
            return self.undefined(obj=obj, name=attribute)

    environment = Environment(undefined=StrictUndefined)
    environment.globals.clear()
    try:
        tree = environment.parse("{{ " + text + " }}")
        body = tree.body
        if len(body) != 1 or not isinstance(body[0], nodes.Output) or len(body[0].nodes) != 1:
            raise PipelineError("a condition is one expression, such as payload.score < 0.5")
        for node in (*tree.find_all(nodes.Node),):
            _check(node, known)
        compiled = environment.compile_expression(text, undefined_to_none=False)
    except TemplateError as error:
        raise PipelineError(f"this is not a condition: {error.message or error}") from None
    except RecursionError:
        raise PipelineError("this condition is nested too deep") from None

    def value_of(names: Mapping[str, Any]) -> Any:
        try:
            value = compiled(**{name: names.get(name, {}) for name in known})
            if isinstance(value, StrictUndefined):
                bool(value)  # raises, and says what is not there
            return value
        except UndefinedError as error:
            raise PipelineError(
                f"the condition `{text}` asks for something that the packet lacks ({error.message}); "
                "ask `... is defined` first"
            ) from None
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise PipelineError(f"the condition `{text}` cannot be decided: {error}") from None

    return value_of


def _check(node: Any, known: tuple[str, ...]) -> None:
    kind = type(node).__name__
    if kind not in _NODES:
        raise PipelineError(f"a condition cannot hold a {kind.lower()}; compare values with ==, <, in, and, or, not")
    if kind == "Name" and node.name not in known:
        raise PipelineError(f"unknown name '{node.name}'" + did_you_mean(node.name, known))
    if kind == "Filter" and node.name not in _FILTERS:
        raise PipelineError(f"unknown filter '{node.name}'" + did_you_mean(node.name, _FILTERS))
    if kind == "Test" and node.name not in _TESTS:
        raise PipelineError(f"unknown test '{node.name}'" + did_you_mean(node.name, _TESTS))
    if kind == "Getattr" and node.attr.startswith("_"):
        raise PipelineError(f"'{node.attr}' cannot be looked at")


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
