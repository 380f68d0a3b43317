# SPDX-License-Identifier: Apache-2.0
"""The fields of a chat request that are about tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictStr

from open_autoglm.serve.routes.request_model import RequestModel

_Name = Annotated[str, Field(strict=True, pattern=r"^[a-zA-Z0-9_.\-]{1,64}$")]


class FunctionFields(RequestModel):
    """What a function is called, does and takes."""

    name: _Name
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of an object; none takes no arguments.")
    strict: StrictBool | None = Field(None, description="Its arguments always fit the schema, also when not forced.")


class ToolFields(RequestModel):
    """One of `tools`."""

    type: Literal["function"]
    function: FunctionFields


class NamedFunction(RequestModel):
    """The function of a named `tool_choice`."""

    name: _Name


class NamedChoice(RequestModel):
    """A `tool_choice` that forces one function."""

    type: Literal["function"]
    function: NamedFunction


def written_tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `tools` of a checked body as they were written, for the prompt; nulls stand for what is not there."""
    return [
        {**tool, "function": {name: value for name, value in tool["function"].items() if value is not None}}
        for tool in body.get("tools") or ()
    ]
