# SPDX-License-Identifier: Apache-2.0
"""`POST /tokenize` and `POST /detokenize`: a model's tokens, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Self

from pydantic import ConfigDict, Field, PrivateAttr, StrictBool, StrictStr, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from open_autoglm.engine.orders import DetokenizeOrder, Reply, Text, TokenizeOrder, Tokens
from open_autoglm.errors import RequestError
from open_autoglm.serve.json_body import read_json_object
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.routes.answering import client_gone, unless_gone
from open_autoglm.serve.routes.chat_request import TemplateOptions
from open_autoglm.serve.routes.message_schema import MESSAGE_SCHEMA
from open_autoglm.serve.routes.request_model import RequestModel, TokenId
from open_autoglm.serve.routes.tool_fields import ToolFields, written_tools
from open_autoglm.serve.settings import ServeSettings
from open_autoglm.serve.watching.request_record import record_of
from open_autoglm.serve.watching.watched_models import watched

_NULL: Final = {"type": "null"}
_EITHER: Final[dict[str, Any]] = {
    "oneOf": [
        {
            "required": ["prompt"],
            "properties": {
                "prompt": {"type": "string"},
                **dict.fromkeys(("messages", "add_generation_prompt", "tools", "chat_template_kwargs"), _NULL),
            },
        },
        {
            "required": ["messages"],
            "properties": {
                "messages": {"type": "array"},
                "prompt": _NULL,
                "add_special_tokens": {"enum": [False, None]},
            },
        },
    ]
}
"""What `TokenizeRequest.order` checks, for the documents."""

_Message = Annotated[dict[str, Any], WithJsonSchema(MESSAGE_SCHEMA)]


class TokenizeRequest(RequestModel):
    """A text, or a conversation; one of them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_EITHER)

    model: StrictStr | None = None
    prompt: StrictStr | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    add_special_tokens: StrictBool | None = Field(
        None, description="GLM's begin tokens before a text; true by default."
    )
    add_generation_prompt: StrictBool | None = Field(
        None, description="What makes the assistant speak after a conversation; true by default."
    )
    return_token_strs: StrictBool | None = None
    tools: list[ToolFields] | None = None
    chat_template_kwargs: TemplateOptions | None = None

    _written_tools: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """See `RequestModel.parse`. Tools are kept as they were written."""
        asked = super().parse(body)
        asked._written_tools = written_tools(body)
        return asked

    def order(self) -> TokenizeOrder:
        """What the model is asked. Raises RequestError for neither or both of `prompt` and `messages`."""
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("give either prompt or messages", "prompt")
        if self.prompt is not None:
            for name in ("add_generation_prompt", "tools", "chat_template_kwargs"):
                if getattr(self, name) is not None:
                    raise RequestError(f"{name} goes with messages, not with prompt", name)
        elif self.add_special_tokens:
            raise RequestError(
                "the layout of a conversation has its own special tokens; leave it out", "add_special_tokens"
            )
        kwargs = self.chat_template_kwargs
        return TokenizeOrder(
            prompt=self.prompt,
            messages=self.messages or [],
            add_special_tokens=self.add_special_tokens is not False,
            add_generation_prompt=self.add_generation_prompt is not False,
            tools=self._written_tools,
            chat_template_kwargs={} if kwargs is None else kwargs.model_dump(exclude_none=True),
            with_names=bool(self.return_token_strs),
        )


class DetokenizeRequest(RequestModel):
    """Token ids."""

    model: StrictStr | None = None
    tokens: list[TokenId]


class TokenizeRoutes:
    """The routes' parts: the models and the operator's limits."""

    def __init__(self, models: Models, settings: ServeSettings) -> None:
        self._models, self._settings = models, settings

    async def tokenize(self, request: Request) -> Response:
        """Text or messages -> tokens."""
        asked = TokenizeRequest.parse(await read_json_object(request, self._settings.max_body))
        found = await unless_gone(request, self._ask(request, asked.model, asked.order()))
        reply, max_context = (None, 0) if found is None else found
        if not isinstance(reply, Tokens):
            return client_gone()
        body = {
            "count": len(reply.ids),
            "max_model_len": max_context,
            "tokens": reply.ids,
            "token_strs": reply.names,
        }
        return JSONResponse(body)

    async def detokenize(self, request: Request) -> Response:
        """Tokens -> text."""
        asked = DetokenizeRequest.parse(await read_json_object(request, self._settings.max_body))
        found = await unless_gone(request, self._ask(request, asked.model, DetokenizeOrder(asked.tokens)))
        if found is None or not isinstance(found[0], Text):
            return client_gone()
        return JSONResponse({"prompt": found[0].text})

    async def _ask(
        self, request: Request, name: str | None, question: TokenizeOrder | DetokenizeOrder
    ) -> tuple[Reply, int]:
        models = watched(self._models, record_of(request.scope))
        async with models.use(self._models.resolve(name)) as model:
            return await model.ask(question), model.card.max_context
