# SPDX-License-Identifier: Apache-2.0
"""The keyword arguments of `LLM.generate` and `LLM.chat`, named as in vLLM, checked and put into types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict

from open_autoglm.engine.request import SamplingParams
from open_autoglm.errors import RequestError

if TYPE_CHECKING:
    from open_autoglm.engine.guides import GuideKind, GuideSpec

BACKENDS: Final = ("native", "torch", "onnx")
"""In the order in which `auto` prefers them on a CPU."""


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams`."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float] | None


class GuidedOptions(TypedDict, total=False):
    """The form that an answer must have; at most one is given.

    guided_json: a JSON schema. guided_grammar: in Lark, or in GBNF. guided_substring: a text whose words the answer
    must be a run of; true for the prompt's own text, in a chat the last user message.
    """

    guided_json: Mapping[str, Any] | str | None
    guided_regex: str | None
    guided_choice: Sequence[str] | None
    guided_grammar: str | None
    guided_substring: str | bool | None


class RequestOptions(SamplingOptions, GuidedOptions, total=False):
    """All that a call may say about its answers."""


GUIDES: Final[dict[str, GuideKind]] = {
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "guided_substring": "substring",
}
"""Option -> kind of `GuideSpec`."""


def sampling_params_of(
    options: RequestOptions, given: SamplingParams | None, default_temperature: float
) -> SamplingParams:
    """`given`, or the parameters that the options name. Raises RequestError for both, and for an unknown option."""
    sampling: dict[str, Any] = {name: value for name, value in options.items() if name not in GUIDES}
    if given is not None:
        if sampling:
            raise RequestError("give either sampling_params or its fields, not both", "sampling_params")
        return given
    unknown = sorted(set(sampling) - set(SamplingOptions.__annotations__))
    if unknown:
        raise RequestError(f"unknown sampling parameter '{unknown[0]}'", unknown[0])
    return SamplingParams(**{"temperature": default_temperature, **sampling})


def guide_of_options(
    options: Mapping[str, Any], text: str | None, response_format: Mapping[str, Any] | None = None
) -> GuideSpec | None:
    """The guide that the options ask for, if any. text: of the prompt, nothing when it came as token ids.

    response_format: what was asked for beside the options, instead of them.
    Raises RequestError, naming the option, when it is invalid or two are given.
    """
    from open_autoglm.engine.guides import GuideSpec

    asked = [name for name in GUIDES if options.get(name) not in (None, False)]
    if len(asked) > 1:
        raise RequestError(f"{asked[0]} and {asked[1]} exclude each other; give one", asked[1])
    if asked and response_format is not None:
        raise RequestError(f"response_format and {asked[0]} exclude each other; give one", asked[0])
    if not asked:
        return None
    name, value = asked[0], options[asked[0]]
    if name == "guided_json" and isinstance(value, str):
        value = _schema_of_text(value)
    if name == "guided_substring" and value is True:
        if text is None:
            raise RequestError("guided_substring=True needs a prompt that is text; give the text instead", name)
        value = text
    return GuideSpec.of(GUIDES[name], value, name)


def _schema_of_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("guided_json is not valid JSON", "guided_json") from None
