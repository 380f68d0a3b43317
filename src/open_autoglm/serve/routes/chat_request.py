# SPDX-License-Identifier: Apache-2.0
"""The body of `/v1/chat/completions`: OpenAI's fields that are supported, and vLLM's extensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, PrivateAttr, StrictBool, StrictStr, WithJsonSchema

from open_autoglm.engine.orders import ChatOrder, ToolChoice
from open_autoglm.engine.request import MAX_LOGPROBS
from open_autoglm.errors import RequestError
from open_autoglm.serve.routes.message_schema import MESSAGE_SCHEMA
from open_autoglm.serve.routes.request_model import Count, RequestModel, whole
from open_autoglm.serve.routes.sampling_fields import SamplingFields
from open_autoglm.serve.routes.tool_fields import NamedChoice, ToolFields, written_tools

_Message = Annotated[dict[str, Any], WithJsonSchema(MESSAGE_SCHEMA)]
_MAX_PAIRS: Final = 16


class TemplateOptions(RequestModel):
    """`chat_template_kwargs`: nothing else of a template, or of the tokenizer, is a client's to set."""

    enable_thinking: StrictBool | None = None
    clear_thinking: StrictBool | None = None


class ChatCompletionRequest(SamplingFields):
    """What a client may ask."""

    not_supported: ClassVar[Mapping[str, str]] = {
        "audio": "answers are text",
        "function_call": "use tool_choice",
        "functions": "use tools",
        "moderation": "leave it out",
        "prediction": "leave it out",
        "prompt_cache_key": "equal beginnings of prompts are found without it",
        "prompt_cache_options": "leave it out",
        "prompt_cache_retention": "leave it out",
        "web_search_options": "give the model a tool that searches",
    }
    reasons: ClassVar[Mapping[str, str]] = {
        "store": "answers are not stored",
        "service_tier": "there is one tier",
        "modalities": "answers are text",
        "verbosity": "there is no such switch",
    }

    messages: list[_Message] = Field(min_length=1)
    max_tokens: Count | None = Field(None, description="Of an answer; as many as the context leaves if not given.")
    max_completion_tokens: Count | None = Field(None, description="The newer name of `max_tokens`.")
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, *whole(0, MAX_LOGPROBS)] | None = None
    tools: list[ToolFields] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: StrictBool | None = Field(
        None, description="More than one call in an answer; true by default."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="`none` and `minimal` switch thinking off, the others on, in a model that thinks."
    )
    chat_template_kwargs: TemplateOptions | None = None
    safety_identifier: StrictStr | None = Field(None, description="Taken and not used.")
    metadata: dict[StrictStr, Annotated[str, Field(strict=True, max_length=512)]] | None = Field(
        None, max_length=_MAX_PAIRS, description="Comes back with the answer."
    )
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    _given_tools: list[dict[str, Any]] = PrivateAttr(default_factory=list)

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """See `RequestModel.parse`. Tools are kept as they were written, for the prompt."""
        asked = super().parse(body)
        asked._given_tools = written_tools(body)
        return asked

    @property
    def echoed(self) -> dict[str, Any]:
        """Fields that come back with the answer."""
        return {} if self.metadata is None else {"metadata": self.metadata}

    def order(self, most_tokens: int) -> ChatOrder:
        """What the model is asked. most_tokens: that may be generated for one request.

        Raises RequestError for fields that do not go together, and for a value out of range.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError("give max_completion_tokens or max_tokens, not both", "max_tokens")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        choice, name = self._tool_choice()
        kwargs = self.chat_template_kwargs
        return ChatOrder(
            messages=self.messages,
            params=self.sampling(limit, logprobs),
            n=self.num_choices,
            response_format=self.response_format,
            guided=self.guides(),
            most_tokens=most_tokens,
            priority=self.priority or 0,
            tools=self._given_tools,
            tool_choice=choice,
            tool_name=name,
            parallel_tool_calls=self.parallel_tool_calls is not False,
            chat_template_kwargs={} if kwargs is None else kwargs.model_dump(exclude_none=True),
            reasoning_effort=self.reasoning_effort,
        )

    def _tool_choice(self) -> tuple[ToolChoice, str | None]:
        if not self._given_tools and self.parallel_tool_calls is not None:
            raise RequestError("parallel_tool_calls needs tools", "parallel_tool_calls")
        if isinstance(self.tool_choice, NamedChoice):
            return "named", self.tool_choice.function.name
        return self.tool_choice or "auto", None
