# SPDX-License-Identifier: Apache-2.0
"""Faults as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from open_autoglm.errors import OpenAutoGLMError, RequestError
from open_autoglm.serve.watching.request_record import record_of

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class HttpError(RequestError):
    """A fault with a status of its own, such as 413."""

    def __init__(
        self,
        status: int,
        message: str,
        parameter: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, parameter)
        self.status, self.code, self.headers = status, code, dict(headers or {})


def error_body(error: OpenAutoGLMError) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of a fault."""
    status = error.status if isinstance(error, HttpError) else error.http_status
    return status, _body(
        status,
        str(error),
        error.parameter if isinstance(error, RequestError) else None,
        error.code if isinstance(error, HttpError) else None,
    )


def error_response(error: OpenAutoGLMError) -> JSONResponse:
    """The answer to a request that failed."""
    status, body = error_body(error)
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def fault_in(status: int, body: Any, headers: Mapping[str, str] | None = None) -> HttpError:
    """The fault that an answer with this status and JSON body tells of: `error_body` the other way round."""
    found = body.get("error") if isinstance(body, Mapping) else None
    fields: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    message = fields.get("message") or "the server gives no reason"
    return HttpError(status, str(message), fields.get("param"), fields.get("code"), headers)


def install_error_handlers(app: Starlette) -> None:
    """Give every fault of an application, known or not, the same shape; unknown ones show no internals."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        return error_response(error) if isinstance(error, OpenAutoGLMError) else _internal()

    async def http(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = {
            404: f"there is nothing at {request.url.path}",
            405: f"{request.method} is not a method of {request.url.path}",
        }
        headers = error.headers if isinstance(error, HTTPException) else None
        return JSONResponse(_body(status, text.get(status, "the request is not valid"), None, None), status, headers)

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        del error  # uvicorn logs it with its traceback
        # This is answered outside of all gates, so the id is put on it here.
        return _internal({"x-request-id": record_of(request.scope).request_id})

    app.add_exception_handler(OpenAutoGLMError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)


def _internal(headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(_body(500, "internal error; the server's log says more", None, None), 500, headers)


def _body(status: int, message: str, parameter: str | None, code: str | None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}
