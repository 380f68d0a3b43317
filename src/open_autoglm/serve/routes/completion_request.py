# SPDX-License-Identifier: Apache-2.0
"""The body of `/v1/completions`: OpenAI's older API, which continues texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final

from pydantic import Field, StrictBool, StrictStr

from open_autoglm.engine.orders import TextOrder
from open_autoglm.engine.request import MAX_LOGPROBS
from open_autoglm.errors import RequestError
from open_autoglm.serve.routes.request_model import Count, TokenId, whole
from open_autoglm.serve.routes.sampling_fields import SamplingFields

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's; less where the context leaves less."""

_Ids = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(SamplingFields):
    """What a client may ask."""

    not_supported: ClassVar[Mapping[str, str]] = {"suffix": "these models continue a text and cannot fill a gap in it"}

    prompt: (
        StrictStr | Annotated[list[StrictStr], Field(min_length=1)] | _Ids | Annotated[list[_Ids], Field(min_length=1)]
    ) = Field(description="A text, texts, token ids, or lists of token ids.")
    max_tokens: Count | None = Field(None, description=f"Of each answer, {DEFAULT_MAX_TOKENS} if not given.")
    best_of: Annotated[int, *whole(1, 128)] | None = Field(
        None, description="So many answers are made, and the `n` likeliest per token are given. Cannot be streamed."
    )
    echo: StrictBool | None = Field(None, description="The answer begins with the prompt.")
    logprobs: Annotated[int, *whole(0, MAX_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[int(item) for item in self.prompt if isinstance(item, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]

    @property
    def num_made(self) -> int:
        """Answers that are made for each prompt."""
        return self.num_choices if self.best_of is None else self.best_of

    def order(self, most_tokens: int) -> TextOrder:
        """What the model is asked. most_tokens: that may be generated for one request.

        Raises RequestError for fields that do not go together, and for a value out of range.
        """
        if self.num_made < self.num_choices:
            raise RequestError(f"best_of is {self.num_made} and n is {self.num_choices}; n cannot be more", "best_of")
        if self.num_made > self.num_choices and self.stream:
            raise RequestError("best_of cannot be streamed: the best answer is known at the end", "best_of")
        if self.echo and self.logprobs is not None:
            raise RequestError("the tokens of a prompt have no logprobs here; give echo or logprobs, not both", "echo")
        ranks = self.num_made > self.num_choices
        return TextOrder(
            prompts=self.prompts,
            params=self.sampling(self.max_tokens, 0 if ranks and self.logprobs is None else self.logprobs),
            n=self.num_made,
            response_format=self.response_format,
            guided=self.guides(),
            most_tokens=most_tokens,
            priority=self.priority or 0,
            default_max_tokens=DEFAULT_MAX_TOKENS,
        )
