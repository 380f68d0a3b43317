# SPDX-License-Identifier: Apache-2.0
"""What goes into the engine and what comes out: sampling parameters, requests, completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from open_autoglm.chat.messages import ToolCall
from open_autoglm.chat.parsing import AnswerParser, ParsedAnswer
from open_autoglm.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from open_autoglm.engine.guides import Guide
    from open_autoglm.engine.sequence import Pooling

FinishReason = Literal["stop", "length", "abort", "error"]

MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 16
MAX_STOP_LENGTH: Final = 256
MAX_PENALTY: Final = 2.0
MAX_TEMPERATURE: Final = 2.0
MIN_REPETITION_PENALTY: Final = 0.01
MAX_REPETITION_PENALTY: Final = 10.0
MAX_BIAS: Final = 100.0
MAX_BIASED_TOKENS: Final = 1024


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one answer are chosen. Names and meanings as in vLLM.

    max_tokens: of the answer; as many as the context leaves when not given.
    temperature: 0 takes the likeliest token. top_k: 0 or -1 switches it off.
    seed: makes the answer the same whatever else is in the batch; random when not given.
    stop: strings that end the answer and are not part of it. stop_token_ids: added to the model's own.
    ignore_eos: do not end at the model's stop tokens.
    logprobs: how many alternatives to report beside each token, 0 for the token alone.
    logit_bias: what is added to the logits of tokens, from -100 to 100 by token id; ids may be written as strings.
    Raises RequestError, naming the field, for a value that is out of range or not a number.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        _check_whole("max_tokens", self.max_tokens, 1, 2**31 - 1, optional=True)
        _check_whole("top_k", self.top_k, -1, 2**31 - 1)
        _check_whole("seed", self.seed, -(2**63), 2**63 - 1, optional=True)
        _check_whole("logprobs", self.logprobs, 0, MAX_LOGPROBS, optional=True)
        _check_number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_number("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_number("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"stop takes at most {MAX_STOP_STRINGS} strings, not {len(self.stop)}", "stop")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_LENGTH:
                raise RequestError(f"each stop string must have 1 to {MAX_STOP_LENGTH} characters", "stop")
        for token_id in self.stop_token_ids:
            _check_whole("stop_token_ids", token_id, 0, 2**31 - 1)


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token, its natural log-probability, and the likeliest alternatives, best first.

    Probabilities are those of the model under the guide, before temperature and penalties.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Request:
    """One prompt to complete, or to measure.

    priority: a lower number goes first. guide: what the answer must look like; used up by this request.
    make_guide: makes it when the engine takes the request in, since one may take half a megabyte.
    drop_prefix: a string that the answer may begin with and that is not part of it.
    stop_switches: tokens after which stop strings are looked for (true) or not. stops_at_first: whether they are before
    the first of these.
    pooling: give the prompt's embedding instead of an answer: the `mean` of its tokens' hidden states after the last
    norm, or that of the `last` token.
    continuations: give the log-probability of each of these continuations instead of an answer.
    new_parser: makes what takes the answer apart, for the prompt as it was opened; nothing for raw prompts.
    """

    id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    guide: Guide | None = None
    priority: int = 0
    drop_prefix: str = ""
    make_guide: Callable[[], Guide] | None = field(default=None, compare=False)
    new_parser: Callable[[], AnswerParser] | None = field(default=None, compare=False)
    stop_switches: Mapping[int, bool] = field(default_factory=dict[int, bool])
    stops_at_first: bool = True
    pooling: Pooling | None = None
    continuations: tuple[tuple[int, ...], ...] | None = None

    @property
    def is_measurement(self) -> bool:
        """Whether it ends with numbers instead of an answer."""
        return self.pooling is not None or self.continuations is not None


class WorkTimes(NamedTuple):
    """When a request was worked on, in seconds of `time.monotonic`.

    queued: it came to the engine. scheduled: the step began that computed its first tokens. first_token, last_token: of
    the answer, were chosen.
    """

    queued: float
    scheduled: float
    first_token: float
    last_token: float


@dataclass(frozen=True)
class Completion:
    """An answer.

    logprobs: given when it was asked for. error: why `finish_reason` is `error`. cached_tokens: how many tokens of the
    prompt had been computed already, for another request.
    embedding: float32[hidden_size], what `pooling` asked for, its length as it comes.
    scores: what `continuations` asked for: of each the natural log-probability of all its tokens, in order.
    text: as it was generated, calls and reasoning among it. answer: its parts, of a chat.
    times: of an answer that has a token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    error: str | None = None
    cached_tokens: int = field(default=0, compare=False)
    embedding: np.ndarray | None = field(default=None, compare=False)
    scores: tuple[float, ...] | None = None
    answer: ParsedAnswer | None = field(default=None, compare=False)
    times: WorkTimes | None = field(default=None, compare=False)

    @property
    def content(self) -> str:
        """What the answer says, without reasoning and calls; all of it for a raw prompt."""
        return self.text if self.answer is None else self.answer.content

    @property
    def reasoning(self) -> str:
        """What was thought before the answer."""
        return "" if self.answer is None else self.answer.reasoning

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the answer."""
        return () if self.answer is None else self.answer.tool_calls

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated, a stop token included."""
        return len(self.token_ids)


class Delta(NamedTuple):
    """What one step added to a request's answer; the last one of a request carries its completion."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


def _check_whole(name: str, value: Any, low: int, high: int, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise RequestError(f"{name} must be a whole number from {low} to {high}, not {_shown(value)}", name)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        raise RequestError(f"{name} must be a number from {low:g} to {high:g}, not {_shown(value)}", name)


def _checked_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping) or len(value) > MAX_BIASED_TOKENS:
        raise RequestError(f"logit_bias must be an object with at most {MAX_BIASED_TOKENS} token ids", "logit_bias")
    checked: dict[int, float] = {}
    for key, number in value.items():
        token_id = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 11 else key
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < 2**31:
            raise RequestError(f"logit_bias: {_shown(key)} is not a token id", "logit_bias")
        _check_number("logit_bias", number, -MAX_BIAS, MAX_BIAS)
        checked[token_id] = float(number)
    return checked


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
