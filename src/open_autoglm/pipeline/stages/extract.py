# SPDX-License-Identifier: Apache-2.0
"""`extract`: what the text of each record says, as JSON that fits a schema."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.invocation import PayloadSchema
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.answering import ModelConfig, answer_as_json, checked, open_answerer
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of, text_of, with_records


class ExtractConfig(ModelConfig):
    """answer_schema: what answers must fit; a bundle of ours has its own. spread: put the fields of an answer into the
    record itself, in place of one field with all of it. confidence: as glm_router has it.
    """

    output: str = "extracted"
    answer_schema: dict[str, Any] | None = None
    spread: bool = False
    confidence: bool = False

    @model_validator(mode="after")
    def _schema_for_servers(self) -> ExtractConfig:
        if self.url is not None and self.answer_schema is None:
            raise ValueError("a server has to be told what to extract; give 'answer_schema'")
        if self.answer_schema is not None:
            try:
                PayloadSchema(self.answer_schema, "answer_schema")
            except PipelineError as error:
                raise ValueError(str(error)) from None
        return self


class Extract:
    """Every answer is parsed and held against the schema: a server may not have kept to it."""

    config_model = ExtractConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: ExtractConfig) -> None:
        self._config = config
        self._answerer = open_answerer(config)
        schema = config.answer_schema
        self._schema = None if schema is None else PayloadSchema({"properties": {"answer": schema}}, "answer_schema")

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with what was extracted in each record."""
        config, records = self._config, [dict(record) for record in records_of(packet)]
        texts = [text_of(record, config.input) for record in records]
        replies = self._answerer.answer(texts, schema=config.answer_schema, confidence=config.confidence)
        names = [name_of(record) for record in records]
        for record, reply in zip(records, checked(replies, names, config.on_error), strict=True):
            value, error = None, reply.error
            if error is None:
                try:
                    value = answer_as_json(reply)
                    if self._schema is not None:
                        self._schema.check(Packet(packet.session_id, {"answer": value}), "the answer")
                except (ValueError, PipelineError) as problem:
                    value, error = None, f"{problem} ({reply.text[:100]!r})"
                    if config.on_error == "raise":
                        raise PipelineError(f"{name_of(record)}: the answer cannot be used: {error}") from None
            if config.spread and isinstance(value, dict):
                record.update({name: part for name, part in value.items() if name != "id"})
            else:
                record[config.output] = value
            if config.confidence:
                record["confidence"] = reply.confidence
            if config.on_error == "record":
                record["error"] = error
        return with_records(packet, context, records)
