# SPDX-License-Identifier: Apache-2.0
"""Parameters that are described as Python's are become a JSON schema; those that are one stay as they are."""

from typing import Any

import pytest

from open_autoglm.chat.tools import check_tools, read_tools
from open_autoglm.data.tool_parameters import with_schema


@pytest.mark.parametrize(
    ("description", "schema", "is_required"),
    [
        ({"type": "str", "description": "d"}, {"type": "string", "description": "d"}, True),
        ({"type": "int, optional", "description": "d"}, {"type": "integer", "description": "d"}, False),
        ({"type": "float", "default": 1.5}, {"type": "number", "default": 1.5}, False),
        ({"type": "Optional[bool]"}, {"type": "boolean"}, False),
        ({"type": "List[int]"}, {"type": "array", "items": {"type": "integer"}}, True),
        ({"type": "List[List[str]], optional"},
         {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, False),
        ({"type": "Tuple[int, int]"}, {"type": "array"}, True),
        ({"type": "Dict[str, int]"}, {"type": "object"}, True),
        ({"type": "Union[int, str]", "description": "d"}, {"description": "d"}, True),
        ({"type": "string", "enum": ["a"]}, {"type": "string", "enum": ["a"]}, True),
        ({"description": "no type"}, {"description": "no type"}, True),
    ],
)  # fmt: skip
def test_a_description_becomes_a_schema(description: Any, schema: Any, is_required: bool) -> None:
    tool = with_schema({"name": "f", "description": "x", "parameters": {"a": description, "type": {"type": "int"}}})
    assert tool["parameters"] == {
        "type": "object",
        "properties": {"a": schema, "type": {"type": "integer"}},
        "required": ["a", "type"] if is_required else ["type"],
    }
    check_tools(read_tools([{"type": "function", "function": tool}]))
    assert with_schema({"type": "function", "function": tool}) == {"type": "function", "function": tool}


@pytest.mark.parametrize(
    "parameters",
    [
        None,
        {},
        {"type": "object", "properties": {"a": {"type": "string"}}},
        {"properties": {"type": {"type": "string"}, "b": {"description": "x"}}},
        {"type": "object", "properties": {}, "required": []},
        {"$ref": "#/x"},
        "text",
    ],
)
def test_what_is_a_schema_stays(parameters: Any) -> None:
    tool = {"name": "f", "parameters": parameters}
    assert with_schema(tool) == tool
