# SPDX-License-Identifier: Apache-2.0
"""Who embeds texts for the stages: our engine in this process, or any server of OpenAI's API by its URL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal, Protocol

from pydantic import Field

from open_autoglm.errors import PipelineError, RequestError
from open_autoglm.pipeline.stages.answering import ModelReference, ModelServer

if TYPE_CHECKING:
    import numpy as np

_TEXTS: Final = 64
"""Texts of one request to a server."""


class EmbedderConfig(ModelReference):
    """The model that embeds. dimensions: keep so many numbers of each vector, the first ones.

    pooling: of our engine: the mean of all tokens' states, or the last one's.
    """

    dimensions: int | None = Field(default=None, ge=1)
    pooling: Literal["mean", "last"] = "mean"


class TextEmbedder(Protocol):
    """Embeds texts. identity: equal for two embedders only if they give the same vectors."""

    identity: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32[len(texts), size], each of length 1.

        Raises PipelineError for a text that is refused, ConnectionError for a server that is away.
        """
        ...


def open_embedder(config: EmbedderConfig) -> TextEmbedder:
    """Who embeds by these settings; a model of ours is loaded. Raises BundleError when there is none."""
    return LocalEmbedder(config) if config.url is None else RemoteEmbedder(config)


class LocalEmbedder:
    """Our engine in this process; all texts are one batch."""

    def __init__(self, config: EmbedderConfig) -> None:
        from open_autoglm.engine import LLM
        from open_autoglm.engine.model_paths import find_model

        self._config = config
        self._llm = LLM(find_model(config.name or ""), threads=config.threads)
        self.identity = _identity(self._llm.digest, config.pooling, config.dimensions)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEmbedder`."""
        try:
            return self._llm.embed(list(texts), pooling=self._config.pooling, dimensions=self._config.dimensions)
        except RequestError as error:
            raise PipelineError(str(error)) from None


class RemoteEmbedder:
    """A server of OpenAI's API."""

    def __init__(self, config: EmbedderConfig) -> None:
        self._config = config
        self._server = ModelServer(config)
        self.identity = _identity(config.url, config.name, config.dimensions)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `TextEmbedder`."""
        import numpy as np

        rows: list[list[float]] = []
        for start in range(0, len(texts), _TEXTS):
            part = list(texts[start : start + _TEXTS])
            request = {"model": self._config.name, "input": part, "encoding_format": "float"}
            if self._config.dimensions is not None:
                request["dimensions"] = self._config.dimensions
            response = self._server.post("embeddings", request)
            if isinstance(response, str):
                raise PipelineError(response)
            try:
                data = sorted(response.json()["data"], key=lambda one: one["index"])
                found = [[float(number) for number in one["embedding"]] for one in data]
            except (ValueError, KeyError, TypeError):
                raise PipelineError(f"{self._config.url} answered something else than embeddings") from None
            rows += found
            if len(found) != len(part) or len({len(row) for row in rows}) > 1:
                raise PipelineError(f"{self._config.url} gave {len(found)} embeddings for {len(part)} texts")
        vectors = np.array(rows, dtype=np.float32).reshape(len(rows), -1)
        if not np.isfinite(vectors).all():
            raise PipelineError(f"{self._config.url} gave an embedding that holds no numbers")
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)


def _identity(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
