# SPDX-License-Identifier: Apache-2.0
"""A message of the .proto file as the body of the REST route that does the same, so that one model checks both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from open_autoglm.errors import RequestError
from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.json_body import json_object

_Request = TypeVar("_Request", bound=Message)

_JSON_FIELDS: Final = frozenset(
    (
        pb.Function.DESCRIPTOR.fields_by_name["parameters"].full_name,
        pb.JsonSchema.DESCRIPTOR.fields_by_name["schema"].full_name,
    )
)
"""Texts that are JSON objects in a REST body."""


def parse_request(kind: type[_Request], data: bytes) -> _Request:
    """The message in some bytes. Raises RequestError for bytes that are none, such as text that is not UTF-8."""
    try:
        return kind.FromString(data)
    except (DecodeError, RecursionError):
        raise RequestError(
            f"the request is not a {kind.DESCRIPTOR.full_name} of open_autoglm.proto, with its texts in UTF-8"
        ) from None


def body_of(request: Message, place: str = "") -> dict[str, Any]:
    """The fields of a message that are set, as JSON has them. place: of the message within the request, for faults.

    Fields without presence are always there, lists and maps where they are not empty.
    Raises RequestError for a field that the .proto file does not have, and for a text that should be JSON and is not.
    """
    unknown = UnknownFieldSet(request)
    if len(unknown):
        number = unknown[0].field_number
        where = f"{place or request.DESCRIPTOR.name} has the unknown field number {number}"
        raise RequestError(f"{where}; leave it out, or ask a server that knows it", place or None)
    body: dict[str, Any] = {}
    for field in request.DESCRIPTOR.fields:
        if field.has_presence and not request.HasField(field.name):
            continue
        path = f"{place}.{field.name}" if place else field.name
        value = getattr(request, field.name)
        if _is_map(field):
            if value:
                body[field.name] = {str(key): inner for key, inner in value.items()}
        elif field.is_repeated:
            if value:
                body[field.name] = [_value(field, inner, f"{path}[{index}]") for index, inner in enumerate(value)]
        else:
            body[field.name] = _value(field, value, path)
    return body


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _value(field: Any, value: Any, place: str) -> Any:
    if field.full_name in _JSON_FIELDS:
        return json_object(value.encode(), place, place)
    if field.message_type is None:
        return value
    written = _WRITTEN.get(field.message_type.full_name)
    return body_of(value, place) if written is None else written(body_of(value, place))


def _input(body: Mapping[str, Any]) -> Any:
    """A text or token ids; nothing for neither, which the route refuses."""
    return body["text"] if "text" in body else body.get("token_ids", {}).get("ids", [] if "token_ids" in body else None)


def _tool_choice(body: Mapping[str, Any]) -> Any:
    if "function" in body:
        return {"type": "function", "function": {"name": body["function"]}}
    return body.get("mode")


def _substring(body: Mapping[str, Any]) -> Any:
    return body.get("text", body.get("of_prompt"))


def _of_a_function(body: Mapping[str, Any]) -> Any:
    return {"type": "function", **body}


_WRITTEN: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    pb.Input.DESCRIPTOR.full_name: _input,
    pb.ToolChoice.DESCRIPTOR.full_name: _tool_choice,
    pb.Substring.DESCRIPTOR.full_name: _substring,
    pb.Tool.DESCRIPTOR.full_name: _of_a_function,
    pb.ToolCall.DESCRIPTOR.full_name: _of_a_function,
}
"""Messages that JSON writes in another shape."""
