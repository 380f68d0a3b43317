# SPDX-License-Identifier: Apache-2.0
"""Fields that chat and text completions share: how tokens are chosen, when an answer ends, what form it has."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, StrictBool, StrictStr

from open_autoglm.engine.options import GUIDES
from open_autoglm.engine.request import (
    MAX_BIAS,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
    SamplingParams,
)
from open_autoglm.errors import RequestError
from open_autoglm.serve.routes.request_model import Count, RequestModel, Texts, TokenId, whole

MAX_PRIORITY: Final = 100

_Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
_Penalty = Annotated[float, Field(strict=True, ge=-MAX_PENALTY, le=MAX_PENALTY, allow_inf_nan=False)]


class StreamOptions(RequestModel):
    """`stream_options`."""

    include_usage: StrictBool | None = Field(None, description="Token counts in a last chunk without choices.")
    include_obfuscation: Literal[False] | None = Field(None, description="Only false: chunks are not padded.")


class SamplingFields(RequestModel):
    """What a client may say about the choice of tokens; names and meanings as in OpenAI's API and vLLM."""

    model: StrictStr | None = Field(None, description="A name of `/v1/models`; the server's default if not given.")
    temperature: Annotated[float, Field(strict=True, ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)] | None = Field(
        None, description="0 takes the likeliest token. The default is 0 for models built by us and 1 for others."
    )
    top_p: _Share | None = None
    n: Count | None = Field(None, description="Answers to each prompt.")
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[Texts, Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        None, description=f"Up to {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_LENGTH} characters that end an answer."
    )
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    seed: Annotated[int, *whole(-(2**63), 2**63 - 1)] | None = None
    logit_bias: (
        dict[StrictStr, Annotated[float, Field(strict=True, ge=-MAX_BIAS, le=MAX_BIAS, allow_inf_nan=False)]] | None
    ) = Field(
        None,
        description="What is added to the logits of tokens, by token id.",
        json_schema_extra={"propertyNames": {"pattern": "^[0-9]{1,9}$"}},
    )
    user: StrictStr | None = Field(None, description="Taken and not used: whom the client asks for.")
    top_k: Annotated[int, *whole(-1, 2**31 - 1)] | None = None
    min_p: _Share | None = None
    repetition_penalty: (
        Annotated[float, Field(strict=True, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY, allow_inf_nan=False)]
        | None
    ) = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: StrictBool | None = None
    priority: Annotated[int, *whole(-MAX_PRIORITY, MAX_PRIORITY)] | None = Field(
        None, description="Who goes first when many wait: the lower number."
    )
    response_format: dict[str, Any] | None = Field(None, description="`text`, `json_object` or `json_schema`.")
    guided_json: dict[str, Any] | StrictStr | None = None
    guided_regex: StrictStr | None = None
    guided_choice: list[StrictStr] | None = None
    guided_grammar: StrictStr | None = Field(None, description="In Lark, or in GBNF.")
    guided_substring: StrictBool | StrictStr | None = Field(
        None, description="The answer is a run of words of this text; true for the prompt's own."
    )

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return 1 if self.n is None else self.n

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> dict[str, Any]:
        """The fields of `SamplingParams` that were given, checked: a fault is told before the model hears of it.

        Raises RequestError.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream to be true", "stream_options")
        params: dict[str, Any] = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if max_tokens is not None:
            params["max_tokens"] = max_tokens
        if logprobs is not None:
            params["logprobs"] = logprobs
        if not _CHECKED_FURTHER.isdisjoint(params):
            SamplingParams(**params)
        return params

    def guides(self) -> dict[str, Any]:
        """The forms of answer that were asked for, vLLM's way."""
        return {name: value for name in GUIDES if (value := getattr(self, name)) is not None}


def check_total(count: int, most: int, what: str, field: str) -> None:
    """Raises RequestError when more is asked for than the operator allows."""
    if count > most:
        raise RequestError(f"{what} is {count}, at most {most} are given", field)


_SAMPLING: Final = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "logit_bias"),
)
_CHECKED_FURTHER: Final = frozenset(("stop", "logit_bias"))
"""Fields of whose values `SamplingParams` takes fewer than the model here, which checks all others by itself."""
