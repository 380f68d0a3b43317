# SPDX-License-Identifier: Apache-2.0
"""`POST /v1/classify`: the probability of each label of a classifier, in vLLM's shape."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field, StrictStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from open_autoglm.engine.orders import Classes, ClassifyOrder
from open_autoglm.serve.json_body import read_json_object
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.routes.answering import client_gone, reply_to
from open_autoglm.serve.routes.request_model import RequestModel
from open_autoglm.serve.routes.sampling_fields import check_total
from open_autoglm.serve.settings import ServeSettings

_MAX_INPUTS: Final = 2048


class ClassifyRequest(RequestModel):
    """What a client may ask."""

    model: StrictStr | None = None
    input: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=_MAX_INPUTS)]
    user: StrictStr | None = Field(None, description="Taken and not used.")


def classify_order(asked: ClassifyRequest, settings: ServeSettings) -> ClassifyOrder:
    """What the model is asked, within the operator's limits. Raises RequestError for too many inputs."""
    inputs = [asked.input] if isinstance(asked.input, str) else asked.input
    check_total(len(inputs), min(_MAX_INPUTS, settings.max_queued), "the number of inputs", "input")
    return ClassifyOrder(inputs)


def likeliest_label(labels: Sequence[str], probabilities: Sequence[float]) -> str:
    """The label with the highest probability, the first of equals."""
    return labels[max(range(len(probabilities)), key=probabilities.__getitem__)]


class ClassifyRoute:
    """The route's parts: the models and the operator's limits."""

    def __init__(self, models: Models, settings: ServeSettings) -> None:
        self._models, self._settings = models, settings

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        asked = ClassifyRequest.parse(await read_json_object(request, self._settings.max_body))
        name = self._models.resolve(asked.model)
        reply = await reply_to(request, self._models, name, classify_order(asked, self._settings))
        if not isinstance(reply, Classes):
            return client_gone()
        data = [
            {
                "index": index,
                "label": likeliest_label(reply.labels, row),
                "probs": row,
                "num_classes": len(row),
            }
            for index, row in enumerate(reply.probabilities)
        ]
        body = {
            "id": f"classify-{secrets.token_hex(16)}",
            "object": "list",
            "created": int(time.time()),
            "model": name,
            "labels": reply.labels,
            "data": data,
            "usage": {"prompt_tokens": reply.prompt_tokens, "total_tokens": reply.prompt_tokens},
        }
        return JSONResponse(body)
