# SPDX-License-Identifier: Apache-2.0
"""Faults as gRPC says them: a code, the message, and Google's error details for programs."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.error_shape import HttpError, error_body

DOMAIN: Final = "open-autoglm"
"""Whose reasons those in `ErrorInfo` are."""
DETAILS_KEY: Final = "grpc-status-details-bin"
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    431: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_LONGEST: Final = 640
"""Bytes of a message: it is in the trailers three times, once with three bytes for each, and clients take 8 KiB."""

Trailers = tuple[tuple[str, str | bytes], ...]


def code_of(status: int) -> grpc.StatusCode:
    """The code that stands for an HTTP status; INTERNAL where none does."""
    return _CODES.get(status, grpc.StatusCode.INTERNAL)


async def end(context: grpc.aio.ServicerContext[Any, Any], error: OpenAutoGLMError, added: Trailers = ()) -> NoReturn:
    """End a call with a fault. added: trailers besides. Raises what `context.abort` raises."""
    code, message, trailers = as_status(error)
    names = {name for name, _ in trailers}
    await context.abort(code, message, (*(item for item in added if item[0] not in names), *trailers))


def as_status(error: OpenAutoGLMError) -> tuple[grpc.StatusCode, str, Trailers]:
    """Code, message and trailers of a fault. The headers that HTTP would send are trailers here."""
    status, body = error_body(error)
    fault = body["error"]
    code, message = code_of(status), _clipped(str(fault["message"]))
    headers = {name.lower(): value for name, value in error.headers.items()} if isinstance(error, HttpError) else {}
    details: list[Message] = [
        ErrorInfo(reason=_reason(fault["code"] or fault["type"]), domain=DOMAIN, metadata={"type": fault["type"]})
    ]
    if fault["param"]:
        violation = BadRequest.FieldViolation(field=_clipped(fault["param"]), description=message)
        details.append(BadRequest(field_violations=[violation]))
    if (seconds := headers.get("retry-after", "")).isdigit():
        retry = RetryInfo()
        retry.retry_delay.seconds = int(seconds)
        details.append(retry)
    packed = [AnyMessage() for _ in details]
    for item, detail in zip(packed, details, strict=True):
        item.Pack(detail)
    rich = Status(code=code.value[0], message=message, details=packed)
    return code, message, (*headers.items(), (DETAILS_KEY, rich.SerializeToString()))


def _reason(name: str) -> str:
    """In the form that ErrorInfo asks for: UPPER_SNAKE_CASE."""
    return name.upper()


def _clipped(text: str) -> str:
    """At most so many bytes of a text, whole characters."""
    data = text.encode(errors="replace")
    return text if len(data) <= _LONGEST else data[: _LONGEST - 3].decode(errors="ignore") + "..."
