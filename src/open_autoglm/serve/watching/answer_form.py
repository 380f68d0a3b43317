# SPDX-License-Identifier: Apache-2.0
"""What an answer must look like, and how it fails to: cut off, no JSON, another shape, or a label outside the set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.engine.orders import ChatOrder, Order

FAULTS: Final[tuple[str, ...]] = ("cut", "not_json", "shape", "label")
"""How an answer may break its form."""

_MAX_DEPTH: Final = 16
_JSON_FORMATS: Final = ("json_object", "json_schema")
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


@dataclass(frozen=True)
class AnswerForm:
    """What an answer must look like. labels: the texts that it may be. schema: of its JSON; an empty one takes any.

    has_tools: it may be calls instead, whose arguments are JSON objects.
    """

    labels: frozenset[str] | None = None
    schema: Mapping[str, Any] | None = None
    has_tools: bool = False

    def fault(self, text: str, arguments: Sequence[str], finish_reason: str | None) -> str | None:
        """How an answer breaks the form, if it does.

        arguments: of its calls. finish_reason: tells an answer that is cut off from one that is wrong.
        """
        is_cut = finish_reason == "length"
        for item in arguments:
            if not isinstance(_json(item), dict):
                return "cut" if is_cut else "not_json"
        if arguments:
            return None
        if self.labels is not None and text not in self.labels:
            return "cut" if is_cut else "label"
        if self.schema is not None:
            value = _json(text)
            if value is _NO_JSON:
                return "cut" if is_cut else "not_json"
            return _misfit(self.schema, value, 0)
        return None


def form_of(order: Order, task: Mapping[str, Any] | None) -> AnswerForm | None:
    """What the answers to an order must look like; nothing if they may be anything.

    task: of the model, as `Task.to_dict` has it: its form holds where the order names no other.
    """
    if order.guided:
        choices, schema = order.guided.get("guided_choice"), order.guided.get("guided_json")
        if isinstance(choices, list):
            return AnswerForm(labels=frozenset(item for item in choices if isinstance(item, str)))
        if schema is not None:
            return AnswerForm(schema=schema if isinstance(schema, dict) else {})
        return None
    asked = order.response_format
    if asked is not None:
        if asked.get("type") not in _JSON_FORMATS:
            return None
        inner = asked.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        return AnswerForm(schema=schema if isinstance(schema, dict) else {"type": "object"})
    if not isinstance(order, ChatOrder):
        return None
    if order.tools and order.tool_choice != "none":
        return AnswerForm(has_tools=True)
    if task is None or not order.guide_by_task:
        return None
    if labels := task.get("labels"):
        return AnswerForm(labels=frozenset(labels))
    schema = task.get("answer_schema")
    return None if schema is None else AnswerForm(schema=schema)


_NO_JSON: Final = object()


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NO_JSON


def _misfit(schema: Any, value: Any, depth: int) -> str | None:
    """How a value breaks a schema, by the keywords that answer schemas are made of; others are passed over."""
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return None
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return "label"
    if "const" in schema and value != schema["const"]:
        return "label"
    options = schema.get("anyOf")
    if isinstance(options, list) and options:
        faults = [_misfit(option, value, depth + 1) for option in options]
        if all(faults):
            return "label" if "label" in faults else "shape"
    if not _has_type(value, schema.get("type")):
        return "shape"
    faults: list[str | None] = []
    if isinstance(value, dict):
        known, required = schema.get("properties"), schema.get("required")
        known = known if isinstance(known, dict) else {}
        if isinstance(required, list) and any(name not in value for name in required):
            return "shape"
        rest = schema.get("additionalProperties", True)
        if rest is False and any(name not in known for name in value):
            return "shape"
        faults = [_misfit(known.get(name, rest), item, depth + 1) for name, item in value.items()]
    elif isinstance(value, list):
        faults = [_misfit(schema.get("items"), item, depth + 1) for item in value]
    return next((fault for fault in faults if fault is not None), None)


def _has_type(value: Any, wanted: Any) -> bool:
    names = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
    kinds = [_TYPES[name] for name in names if isinstance(name, str) and name in _TYPES]
    if not kinds:
        return True
    return any(isinstance(value, kind) and (not isinstance(value, bool) or bool in kind) for kind in kinds)
