# SPDX-License-Identifier: Apache-2.0
"""What a server asks of a model and what it gets back: plain values, so that the model may live in another process."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

ToolChoice = Literal["auto", "none", "required", "named"]
Pooling = Literal["mean", "last"]


class ChatOrder(msgspec.Struct, frozen=True, omit_defaults=True, tag="chat"):
    """The assistant's next turn, `n` times.

    messages: as OpenAI's API has them. params: the fields of `SamplingParams` that were given.
    response_format, guided: what the answer must look like, OpenAI's and vLLM's way (`guided_json`, ...); at most one.
    guide_by_task: with neither, keep the answer to the form of the bundle's task.
    most_tokens: that may be generated for the order, `n` times `max_tokens`; no limit if not given.
    priority: a lower number goes first.
    tools: functions that the model may call, as OpenAI's API has them. tool_choice: whether it may or must call one;
    `named` is the one in `tool_name`. parallel_tool_calls: more than one call in an answer.
    chat_template_kwargs: the fields of `ChatOptions` that were given. reasoning_effort: OpenAI's, switches thinking.
    """

    messages: list[dict[str, Any]]
    params: dict[str, Any] = {}
    n: int = 1
    response_format: dict[str, Any] | None = None
    guided: dict[str, Any] = {}
    guide_by_task: bool = True
    most_tokens: int | None = None
    priority: int = 0
    tools: list[dict[str, Any]] = []
    tool_choice: ToolChoice = "auto"
    tool_name: str | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] = {}
    reasoning_effort: str | None = None


class TextOrder(msgspec.Struct, frozen=True, omit_defaults=True, tag="text"):
    """The continuation of each prompt, `n` times; choice `p * n + i` is the i-th of prompt p.

    prompts: texts, or token ids. default_max_tokens: of an answer whose `params` say none, less where the context
    leaves less. The other fields are those of `ChatOrder`.
    """

    prompts: list[str | list[int]]
    params: dict[str, Any] = {}
    n: int = 1
    response_format: dict[str, Any] | None = None
    guided: dict[str, Any] = {}
    most_tokens: int | None = None
    priority: int = 0
    default_max_tokens: int | None = None


Order = ChatOrder | TextOrder


class EmbedOrder(msgspec.Struct, frozen=True, omit_defaults=True, tag="embed"):
    """A vector for each input. inputs: texts, or token ids.

    dimensions: the first so many numbers only, of length 1 again if `normalize`.
    """

    inputs: list[str | list[int]]
    pooling: Pooling = "mean"
    normalize: bool = True
    dimensions: int | None = None


class ClassifyOrder(msgspec.Struct, frozen=True, omit_defaults=True, tag="classify"):
    """The probability of each label of a classifier for each input."""

    inputs: list[str]


class TokenizeOrder(msgspec.Struct, frozen=True, omit_defaults=True, tag="tokenize"):
    """The tokens of a text, or of a conversation laid out as for an answer.

    add_special_tokens: of a text, GLM's begin tokens before it. add_generation_prompt: of a conversation, what makes
    the assistant speak after it. tools, chat_template_kwargs: as in `ChatOrder`.
    """

    prompt: str | None = None
    messages: list[dict[str, Any]] = []
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    tools: list[dict[str, Any]] = []
    chat_template_kwargs: dict[str, Any] = {}
    with_names: bool = False


class DetokenizeOrder(msgspec.Struct, frozen=True, omit_defaults=True, tag="detokenize"):
    """The text of tokens, control tokens by their names."""

    tokens: list[int]


Question = EmbedOrder | ClassifyOrder | TokenizeOrder | DetokenizeOrder
"""An order that has one value for an answer, instead of pieces."""


class Embeddings(msgspec.Struct, frozen=True, array_like=True, tag="embeddings"):
    """vectors: one for each input, float32 in little-endian bytes. prompt_tokens: of all inputs."""

    vectors: list[bytes]
    prompt_tokens: int


class Classes(msgspec.Struct, frozen=True, array_like=True, tag="classes"):
    """labels: of the classifier. probabilities: for each input, one for each label. prompt_tokens: of all inputs."""

    labels: list[str]
    probabilities: list[list[float]]
    prompt_tokens: int


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag="tokens"):
    """ids: of the tokens. names: how the tokenizer spells them, if they were asked for."""

    ids: list[int]
    names: list[str] | None = None


class Text(msgspec.Struct, frozen=True, array_like=True, tag="text"):
    """text: what the tokens stand for."""

    text: str


Reply = Embeddings | Classes | Tokens | Text
"""What answers a `Question`."""


class TokenScore(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer, its natural log-probability, and the likeliest alternatives, best first.

    piece: the token's bytes. top: their bytes and log-probabilities.
    """

    piece: bytes
    logprob: float
    top: list[tuple[bytes, float]] = []


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts of one choice.

    cached_tokens: of the prompt, computed before for another request. reasoning_tokens: of the answer, thought.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class CallPiece(msgspec.Struct, frozen=True, array_like=True):
    """What is new in a call of a tool. The first piece of a call has its `id` and `name`, the others `arguments`.

    index: of the call within the choice. arguments: a part of a JSON object, as text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Times(msgspec.Struct, frozen=True, array_like=True):
    """When the engine worked on a choice: seconds of `time.monotonic`, which all processes of a machine share.

    queued: it came to the engine. scheduled: the step began that computed its first tokens. first_token, last_token: of
    the answer, were chosen. parse_seconds: how long it took altogether to tell content, reasoning and calls apart.
    """

    queued: float
    scheduled: float
    first_token: float
    last_token: float
    parse_seconds: float = 0.0


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """What is new in one choice of an answer.

    text: of the content. scores: of the tokens that it came from, if they were asked for. num_tokens: how many tokens
    it took, shown or not. finish_reason: `stop`, `length` or `tool_calls`, with the last piece of the choice, which
    brings `usage`, and `times` where the engine knows them. reasoning: what was thought. calls: of tools.
    """

    choice: int
    text: str = ""
    num_tokens: int = 0
    scores: list[TokenScore] = []
    finish_reason: str | None = None
    usage: Usage | None = None
    reasoning: str = ""
    calls: list[CallPiece] = []
    times: Times | None = None


class ModelCard(msgspec.Struct, frozen=True):
    """What a server must know of a model.

    task: as `Task.to_dict` has it, none for a checkpoint that is no bundle. max_context: tokens of a prompt with its
    answer. has_tokenizer: without one it takes token ids only. engine: what computes, for people.
    digest: equal where answers must be equal.
    """

    name: str
    max_context: int
    vocab_size: int
    has_tokenizer: bool
    default_temperature: float
    engine: str
    chat_format: str
    digest: str
    task: dict[str, Any] | None = None
