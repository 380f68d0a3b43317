# SPDX-License-Identifier: Apache-2.0
"""`POST /v1/chat/completions`: from a body to the engine and back, streamed or whole."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from open_autoglm.engine.orders import ChatOrder
from open_autoglm.serve.json_body import read_json_object
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.routes.answering import answer
from open_autoglm.serve.routes.chat_request import ChatCompletionRequest
from open_autoglm.serve.routes.chat_response import ChatResponseWriter
from open_autoglm.serve.routes.sampling_fields import check_total
from open_autoglm.serve.settings import ServeSettings


def chat_order(asked: ChatCompletionRequest, settings: ServeSettings) -> ChatOrder:
    """What the model is asked, within the operator's limits. Raises RequestError as `ChatCompletionRequest.order`."""
    check_total(asked.num_choices, settings.max_choices, "n", "n")
    return asked.order(settings.max_generated)


class ChatRoute:
    """The route's parts: the models and the operator's limits."""

    def __init__(self, models: Models, settings: ServeSettings) -> None:
        self._models, self._settings = models, settings

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        asked = ChatCompletionRequest.parse(await read_json_object(request, self._settings.max_body))
        name = self._models.resolve(asked.model)
        order = chat_order(asked, self._settings)
        writer = ChatResponseWriter(
            name, asked.num_choices, logprobs=bool(asked.logprobs), with_usage=asked.with_usage, echoed=asked.echoed
        )
        return await answer(request, self._models, name, order, writer, stream=bool(asked.stream))
