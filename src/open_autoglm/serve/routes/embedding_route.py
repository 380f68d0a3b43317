# SPDX-License-Identifier: Apache-2.0
"""`POST /v1/embeddings`: a vector for each text."""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StrictBool, StrictStr
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from open_autoglm.engine.orders import Embeddings, EmbedOrder
from open_autoglm.serve.json_body import read_json_object
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.routes.answering import client_gone, reply_to
from open_autoglm.serve.routes.request_model import Count, RequestModel, TokenId
from open_autoglm.serve.routes.sampling_fields import check_total
from open_autoglm.serve.settings import ServeSettings

MAX_INPUTS: Final = 2048
"""OpenAI's."""

_Text = Annotated[str, Field(strict=True, min_length=1)]
_Ids = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingRequest(RequestModel):
    """What a client may ask."""

    reasons: ClassVar[Mapping[str, str]] = {}

    model: StrictStr | None = None
    input: (
        _Text
        | Annotated[list[_Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_INPUTS)]
    ) = Field(description="A text, texts, token ids, or lists of token ids.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = Field(None, description="Keep so many numbers, the first ones.")
    pooling: Literal["mean", "last"] | None = Field(
        None, description="The mean of the last hidden states of all tokens, or that of the last token."
    )
    normalize: StrictBool | None = Field(None, description="Vectors of length 1; true by default.")
    user: StrictStr | None = Field(None, description="Taken and not used.")

    @property
    def inputs(self) -> list[str | list[int]]:
        """The inputs as a list."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [[int(item) for item in self.input if isinstance(item, int)]]
        return [item for item in self.input if not isinstance(item, int)]


def embed_order(asked: EmbeddingRequest, settings: ServeSettings) -> EmbedOrder:
    """What the model is asked, within the operator's limits. Raises RequestError for too many inputs."""
    inputs = asked.inputs
    check_total(len(inputs), min(MAX_INPUTS, settings.max_queued), "the number of inputs", "input")
    return EmbedOrder(inputs, asked.pooling or "mean", asked.normalize is not False, asked.dimensions)


def vector_of(row: bytes) -> array.array[float]:
    """The numbers of a vector as a reply has it: float32, little-endian."""
    numbers = array.array("f", row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


class EmbeddingRoute:
    """The route's parts: the models and the operator's limits."""

    def __init__(self, models: Models, settings: ServeSettings) -> None:
        self._models, self._settings = models, settings

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        asked = EmbeddingRequest.parse(await read_json_object(request, self._settings.max_body))
        name = self._models.resolve(asked.model)
        reply = await reply_to(request, self._models, name, embed_order(asked, self._settings))
        if not isinstance(reply, Embeddings):
            return client_gone()
        as_text = asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _text(row) if as_text else vector_of(row).tolist()}
            for index, row in enumerate(reply.vectors)
        ]
        usage = {"prompt_tokens": reply.prompt_tokens, "total_tokens": reply.prompt_tokens}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})


def _text(row: bytes) -> str:
    """float32, little-endian, in base64, as OpenAI's clients read it."""
    return base64.b64encode(row).decode()
