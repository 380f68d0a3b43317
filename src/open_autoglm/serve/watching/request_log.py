# SPDX-License-Identifier: Apache-2.0
"""One line of the log for each request, at its end."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from open_autoglm.engine.orders import ChatOrder
from open_autoglm.serve.watching.request_record import RequestRecord

_NAME: Final = "open_autoglm.serve.request"
_QUIET: Final = frozenset(("/health", "/ready", "/metrics", "/", "/playground/{name}"))
"""Asked for again and again by probes, scrapers and browsers: told at `debug`, unless they fail."""
_TRACE_PARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class RequestLog:
    """Writes the lines. with_content: also prompts and answers, as far as the record keeps them."""

    def __init__(self, *, with_content: bool) -> None:
        self._with_content = with_content
        self._logger = logging.getLogger(_NAME)

    def write(self, record: RequestRecord, trace_id: str | None = None) -> None:
        """Tell of a request that has ended. trace_id: of its spans; else the caller's is told."""
        level = _level_of(record)
        if not self._logger.isEnabledFor(level):
            return
        fields = request_fields(record, trace_id)
        if self._with_content and record.order is not None:
            fields |= _content(record)
        # Without a search of the stack for the caller, which costs as much again.
        self._logger.handle(self._logger.makeRecord(_NAME, level, "", 0, {"event": "request", **fields}, (), None))


def request_fields(record: RequestRecord, trace_id: str | None = None) -> dict[str, Any]:
    """What a line says of a request; nothing that its client wrote but the id and the trace, whose form is checked."""
    tokens = record.tokens
    reasons = [choice.finish_reason for _, choice in record.answers]
    asked = record.model is not None
    method = record.method if record.method.isascii() and record.method.isalpha() else "other"
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "protocol": record.protocol,
        "method": method if record.protocol == "http" else None,
        "route": record.route,
        "status": record.status,
        "key": record.key_id,
        "model": record.model,
        "stream": record.is_stream,
        "prompt_tokens": tokens.prompt if asked else None,
        "completion_tokens": tokens.completion if record.order is not None else None,
        "cached_tokens": tokens.cached if record.order is not None else None,
        "queue_seconds": _rounded(record.queue_seconds),
        "first_token_seconds": _rounded(record.first_token_seconds),
        "total_seconds": _rounded(record.total_seconds),
        "finish_reasons": reasons or None,
        "cache": record.cache,
        "aborted": record.aborted or None,
        "error": record.error,
        "error_message": record.error_message,
        "trace_id": trace_id or _trace_id_of(record.trace_parent),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _level_of(record: RequestRecord) -> int:
    if record.status >= 500 or record.error in ("internal", "unavailable"):
        return logging.ERROR
    if record.error is None and record.route in _QUIET:
        return logging.DEBUG
    return logging.INFO


def _content(record: RequestRecord) -> dict[str, Any]:
    order = record.order
    answers = [
        {
            "choice": index,
            "text": "".join(choice.text),
            **({"calls": ["".join(parts) for parts in choice.arguments.values()]} if choice.arguments else {}),
            **({"cut": True} if choice.is_cut else {}),
        }
        for index, choice in sorted(record.choices.items())
    ]
    asked = (
        {"messages": order.messages} if isinstance(order, ChatOrder) else {"prompts": order.prompts if order else []}
    )
    return {**asked, "answers": answers}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _trace_id_of(header: str | None) -> str | None:
    found = None if header is None else _TRACE_PARENT.fullmatch(header)
    return None if found is None else found[1]
