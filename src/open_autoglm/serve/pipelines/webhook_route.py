# SPDX-License-Identifier: Apache-2.0
"""`POST /hooks/...`: somebody else's news start a run of the pipeline whose trigger names the path, if it is signed."""

from __future__ import annotations

import logging
import os
import secrets
import time
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from open_autoglm.errors import ConfigurationError, RequestError
from open_autoglm.pipeline.secrets import SecretStore
from open_autoglm.pipeline.triggers.webhook_signature import SHORTEST_SECRET, check_webhook
from open_autoglm.serve.error_shape import HttpError
from open_autoglm.serve.json_body import json_object, read_body
from open_autoglm.serve.pipelines.pipeline_desk import PipelineDesk

TIMESTAMP_HEADER: Final = "x-webhook-timestamp"
SIGNATURE_HEADER: Final = "x-webhook-signature"
DELIVERY_HEADER: Final = "x-webhook-delivery"

_log = logging.getLogger("open_autoglm.serve")


class WebhookRoute:
    """The route. max_body: bytes."""

    def __init__(self, desk: PipelineDesk, max_body: int) -> None:
        self._desk, self._max_body = desk, max_body

    async def answer(self, request: Request) -> Response:
        """202 with the run, which is the same for the same delivery; 401 for what is not genuine.

        Whoever has no secret learns nothing of which webhooks there are.
        """
        body = await read_body(request, self._max_body)
        timestamp, signature, delivery = (
            request.headers.get(name, "") for name in (TIMESTAMP_HEADER, SIGNATURE_HEADER, DELIVERY_HEADER)
        )
        path = request.scope["path"]

        def work() -> dict[str, Any]:
            content = self._content_of(path)
            # Where there is no webhook nobody knows the secret, and everything else is as elsewhere.
            secret = (None if content is None else self._secret_of(content)) or secrets.token_hex(32)
            try:
                key = check_webhook(secret, timestamp, signature, body, time.time(), delivery=delivery)
            except RequestError as error:
                message = f"{error}, or there is no such webhook; docs/pipelines.md says how requests are signed"
                raise HttpError(401, message, code="invalid_signature") from None
            assert content is not None, "a signature of a secret that nobody knows"
            run_id, is_new = self._desk.journal.submit(
                content,
                None,
                folder=str(self._desk.folder),
                key=f"webhook/{content['name']}/{key}",
                payload=json_object(body),
            )
            return {"id": run_id, "object": "run", "new": is_new, **self._desk.who_works()}

        return JSONResponse(await self._desk.do(work), 202)

    def _content_of(self, path: str) -> dict[str, Any] | None:
        contents = (one.content for one in self._desk.files.files())
        return next((one for one in contents if one is not None and one["trigger"].get("webhook") == path), None)

    def _secret_of(self, content: dict[str, Any]) -> str | None:
        name = content["trigger"].get("secret")
        if name is None:
            _log.warning("the webhook of %s takes nothing: its trigger names no secret", content["name"])
            return None
        try:
            secret = SecretStore(os.environ).get(name)
        except ConfigurationError as error:
            _log.warning("the webhook of %s takes nothing: %s", content["name"], error)
            return None
        if len(secret) < SHORTEST_SECRET:
            _log.warning(
                "the webhook of %s takes nothing: its secret has less than %d characters",
                content["name"],
                SHORTEST_SECRET,
            )
            return None
        return secret
