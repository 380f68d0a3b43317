# SPDX-License-Identifier: Apache-2.0
"""Who answers texts for the stages: our engine in this process, or any server of OpenAI's API by its URL."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from open_autoglm.errors import ConfigurationError, PipelineError

if TYPE_CHECKING:
    import httpx

_TRANSIENT: Final = frozenset({408, 409, 425, 429})
_LONGEST_REASON: Final = 300


class ModelReference(BaseModel):
    """model: a bundle's folder or the NAME of runs/NAME; with url, what the server calls it. model_hint: the same, as
    a stage's own key in the file has it. url: of a server's API, such as http://127.0.0.1:8000/v1; without it our
    engine answers in this process. api_key: for the server; write ${secrets:NAME}.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    model_hint: str | None = None
    url: str | None = None
    api_key: str | None = Field(default=None, repr=False)
    seconds: float = Field(default=120.0, gt=0, description="How long one answer of a server may take.")
    threads: int | None = Field(default=None, ge=1, description="Processor threads of our engine.")

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("write it like http://127.0.0.1:8000/v1")
        return value

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.model is not None and self.model_hint is not None and self.model != self.model_hint:
            raise ValueError("model and model_hint name two models; give one")
        if self.name is None:
            raise ValueError("name a model with 'model', or with the stage's 'model_hint'")
        return self

    @property
    def name(self) -> str | None:
        """The model's name or folder."""
        return self.model or self.model_hint


class ModelConfig(ModelReference):
    """A model, and what is asked of it.

    input: the field with the text; the only text of a record if not given. output: the field for the answer.
    on_error: a text that is refused ends the run, or its record says so in `error`.
    """

    input: str | None = None
    output: str = "answer"
    system: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, description="The model's own if not given.")
    on_error: str = Field(default="raise", pattern="^(raise|record)$")


@dataclass(frozen=True)
class Reply:
    """An answer. confidence: the geometric mean of its tokens' probabilities, where it was asked for.

    error: why there is none.
    """

    text: str
    confidence: float | None = None
    error: str | None = None


class Answerer(Protocol):
    """Answers texts."""

    def answer(
        self, texts: Sequence[str], *, schema: Mapping[str, Any] | None = None, confidence: bool = False
    ) -> list[Reply]:
        """One reply for each text, in order. schema: what the answers must fit.

        Raises PipelineError or ConfigurationError for what will not pass, ConnectionError for what may.
        """
        ...


def open_answerer(config: ModelConfig) -> Answerer:
    """Who answers by these settings; a model of ours is loaded. Raises BundleError when there is none."""
    return LocalAnswerer(config) if config.url is None else RemoteAnswerer(config)


class ModelServer:
    """A server of OpenAI's API, over one connection."""

    def __init__(self, config: ModelReference) -> None:
        import httpx

        self._url = config.url
        headers = {} if config.api_key is None else {"Authorization": f"Bearer {config.api_key}"}
        # Redirects are not followed: the key goes to the server that the file names and to no other.
        self._client: httpx.Client = httpx.Client(
            base_url=(config.url or "").rstrip("/") + "/", headers=headers, timeout=config.seconds,
            follow_redirects=False, trust_env=False,
        )  # fmt: skip

    def post(self, path: str, request: Mapping[str, Any]) -> httpx.Response | str:
        """The answer, or why the server refused what it was asked.

        Raises ConnectionError for what may pass, ConfigurationError for what will not.
        """
        import httpx

        try:
            response = self._client.post(path, json=request)
        except httpx.HTTPError as error:
            raise ConnectionError(f"{self._url}: {type(error).__name__}: {error}") from None
        if response.status_code in _TRANSIENT or response.status_code >= 500:
            raise ConnectionError(f"{self._url} answered {response.status_code}: {_reason(response)}")
        if response.status_code in (400, 413, 422):
            return f"the server refused it with {response.status_code}: {_reason(response)}"
        if response.status_code != 200:
            raise ConfigurationError(f"{self._url} answered {response.status_code}: {_reason(response)}")
        return response


class LocalAnswerer:
    """Our engine in this process; many texts are one batch."""

    def __init__(self, config: ModelConfig) -> None:
        from open_autoglm.engine import LLM
        from open_autoglm.engine.model_paths import find_model

        self._config = config
        self.llm = LLM(find_model(config.name or ""), threads=config.threads)

    def answer(
        self, texts: Sequence[str], *, schema: Mapping[str, Any] | None = None, confidence: bool = False
    ) -> list[Reply]:
        """See `Answerer`."""
        options: dict[str, Any] = {}
        if self._config.max_tokens is not None:
            options["max_tokens"] = self._config.max_tokens
        if self._config.temperature is not None:
            options["temperature"] = self._config.temperature
        if confidence:
            options["logprobs"] = 0
        form = None
        if schema is not None:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
        conversations: Any = [_messages(text, self._config.system) for text in texts]
        completions = self.llm.chat(conversations, response_format=form, on_error="return", **options)
        return [
            Reply(
                one.content,
                None if one.logprobs is None else _mean_probability([token.logprob for token in one.logprobs]),
                _refusal(one.finish_reason, one.error),
            )
            for one in completions
        ]


class RemoteAnswerer:
    """A server of OpenAI's API, asked for one text after the other over one connection."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._server = ModelServer(config)

    def answer(
        self, texts: Sequence[str], *, schema: Mapping[str, Any] | None = None, confidence: bool = False
    ) -> list[Reply]:
        """See `Answerer`."""
        return [self._one(text, schema, confidence) for text in texts]

    def _one(self, text: str, schema: Mapping[str, Any] | None, confidence: bool) -> Reply:
        config = self._config
        request: dict[str, Any] = {"model": config.name, "messages": _messages(text, config.system)}
        if config.max_tokens is not None:
            request["max_tokens"] = config.max_tokens
        if config.temperature is not None:
            request["temperature"] = config.temperature
        if confidence:
            request["logprobs"] = True
        if schema is not None:
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": dict(schema), "strict": True},
            }
        response = self._server.post("chat/completions", request)
        if isinstance(response, str):
            return Reply("", error=response)
        try:
            choice = response.json()["choices"][0]
            content = choice["message"]["content"] or ""
            tokens = (choice.get("logprobs") or {}).get("content") or []
            sure = _mean_probability([float(token["logprob"]) for token in tokens])
            reason = choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise PipelineError(f"{config.url} answered something else than a chat completion") from None
        return Reply(content, sure if confidence else None, _refusal(reason, None))


def checked(replies: Sequence[Reply], names: Sequence[str], on_error: str) -> list[Reply]:
    """The replies; one with an error ends the run unless records may carry it. names: of the records, in order."""
    for reply, name in zip(replies, names, strict=True):
        if reply.error is not None and on_error == "raise":
            raise PipelineError(f"{name} has no answer: {reply.error}; on_error: record keeps going")
    return list(replies)


def answer_as_json(reply: Reply) -> Any:
    """The JSON value of an answer. Raises ValueError when it is none."""
    return json.loads(reply.text)


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    asked = {"role": "user", "content": text}
    return [asked] if system is None else [{"role": "system", "content": system}, asked]


def _mean_probability(logprobs: Sequence[float]) -> float | None:
    return math.exp(math.fsum(logprobs) / len(logprobs)) if logprobs else None


def _refusal(reason: str | None, error: str | None) -> str | None:
    if reason == "error":
        return error or "the model failed"
    return "the answer was cut off at its longest; raise max_tokens" if reason == "length" else None


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:_LONGEST_REASON]
    except (ValueError, KeyError, TypeError):
        return response.text[:_LONGEST_REASON]
