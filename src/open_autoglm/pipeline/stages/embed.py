# SPDX-License-Identifier: Apache-2.0
"""`embed`: the embedding of each record's text."""

from __future__ import annotations

from typing import Any, Literal

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of, text_of, with_records
from open_autoglm.pipeline.stages.text_embedding import EmbedderConfig, open_embedder


class EmbedConfig(EmbedderConfig):
    """input: the field with the text; the only text of a record if not given. output: the field for the vector, a list
    of numbers of length 1. on_error: a text that is refused ends the run, or its record says so in `error`.
    """

    input: str | None = None
    output: str = "embedding"
    on_error: Literal["raise", "record"] = "raise"


class Embed:
    """All texts of a packet are one batch."""

    config_model = EmbedConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config
        self._embedder = open_embedder(config)

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with a vector in each record."""
        config, records = self._config, [dict(record) for record in records_of(packet)]
        texts = [text_of(record, config.input) for record in records]
        try:
            vectors: list[Any] = self._embedder.embed(texts).tolist() if texts else []
            errors: list[str | None] = [None] * len(vectors)
        except PipelineError:  # one of them is refused; one by one says which
            vectors, errors = [], []
            for record, text in zip(records, texts, strict=True):
                vector, error = None, None
                try:
                    vector = self._embedder.embed([text])[0].tolist()
                except PipelineError as problem:
                    error = str(problem)
                    if config.on_error == "raise":
                        raise PipelineError(
                            f"{name_of(record)} has no embedding: {error}; on_error: record keeps going"
                        ) from None
                vectors.append(vector)
                errors.append(error)
        for record, vector, error in zip(records, vectors, errors, strict=True):
            record[config.output] = vector
            if config.on_error == "record":
                record["error"] = error
        return with_records(packet, context, records)
