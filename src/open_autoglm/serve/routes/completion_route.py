# SPDX-License-Identifier: Apache-2.0
"""`POST /v1/completions`: texts continued, streamed or whole."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from open_autoglm.engine.orders import DetokenizeOrder, Text, TextOrder
from open_autoglm.serve.json_body import read_json_object
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.routes.answering import answer, client_gone, unless_gone
from open_autoglm.serve.routes.completion_request import CompletionRequest
from open_autoglm.serve.routes.completion_response import CompletionResponseWriter
from open_autoglm.serve.routes.sampling_fields import check_total
from open_autoglm.serve.settings import ServeSettings


def completion_order(asked: CompletionRequest, settings: ServeSettings) -> TextOrder:
    """What the model is asked, within the operator's limits. Raises RequestError as `CompletionRequest.order` does."""
    check_total(asked.num_choices, settings.max_choices, "n", "n")
    check_total(asked.num_made, settings.max_choices, "best_of", "best_of")
    check_total(len(asked.prompts) * asked.num_made, settings.max_queued, "the number of answers", "prompt")
    return asked.order(settings.max_generated)


async def echoes_of(asked: CompletionRequest, models: Models, name: str) -> list[str]:
    """The prompts as texts, for answers that begin with them. Raises as `ModelClient.ask`."""
    echoes: list[str] = []
    for prompt in asked.prompts:
        if isinstance(prompt, str):
            echoes.append(prompt)
            continue
        async with models.use(name) as model:
            reply = await model.ask(DetokenizeOrder(prompt))
        echoes.append(reply.text if isinstance(reply, Text) else "")
    return echoes


class CompletionRoute:
    """The route's parts: the models and the operator's limits."""

    def __init__(self, models: Models, settings: ServeSettings) -> None:
        self._models, self._settings = models, settings

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        asked = CompletionRequest.parse(await read_json_object(request, self._settings.max_body))
        name = self._models.resolve(asked.model)
        order = completion_order(asked, self._settings)
        echoes: list[str] | None = [""] * len(asked.prompts)
        if asked.echo:
            echoes = await unless_gone(request, echoes_of(asked, self._models, name))
        if echoes is None:
            return client_gone()
        writer = CompletionResponseWriter(
            name,
            echoes,
            num_choices=asked.num_choices,
            num_made=asked.num_made,
            logprobs=asked.logprobs is not None,
            with_usage=asked.with_usage,
        )
        return await answer(request, self._models, name, order, writer, stream=bool(asked.stream))
