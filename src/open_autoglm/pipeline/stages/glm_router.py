# SPDX-License-Identifier: Apache-2.0
"""`glm_router`: an answer to the text of each record, by the model that its route names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.answering import Answerer, ModelConfig, Reply, checked, open_answerer
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of, text_of, with_records

_DEFAULT = ""


class Route(BaseModel):
    """Another model for some records."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    url: str | None = None
    api_key: str | None = None


class GlmRouterConfig(ModelConfig):
    """confidence: give each record the mean probability of its answer's tokens. schema: that answers must fit.

    route_field, routes: the field whose value names the route of a record; a value without a route takes the
    stage's own model. samples: several answers to each text, as a list, for `vote`; give a temperature with it.
    """

    confidence: bool = False
    answer_schema: dict[str, Any] | None = None
    samples: int = Field(default=1, ge=1, le=64)
    route_field: str | None = None
    routes: dict[str, Route] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _routes_have_a_field(self) -> GlmRouterConfig:
        if bool(self.routes) != (self.route_field is not None):
            raise ValueError("routes need a route_field that names one, and a route_field needs routes")
        if self.samples > 1 and not self.temperature:
            raise ValueError("several samples need a temperature above 0, or all are the same")
        return self


class GlmRouter:
    """Models are loaded when the first record needs them, and kept."""

    config_model = GlmRouterConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: GlmRouterConfig) -> None:
        self._config = config
        self._answerers: dict[str, Answerer] = {}

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with an answer in each record, in their order."""
        config, records = self._config, [dict(record) for record in records_of(packet)]
        groups: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            groups.setdefault(self._route(record), []).append(record)
        for route, group in groups.items():
            if context.cancelled():
                raise PipelineError("stopped")
            asked = [record for record in group for _ in range(config.samples)]
            texts = [text_of(record, config.input) for record in asked]
            replies = self._answerer(route).answer(texts, schema=config.answer_schema, confidence=config.confidence)
            replies = checked(replies, [name_of(record) for record in asked], config.on_error)
            for index, record in enumerate(group):
                self._write(record, replies[index * config.samples : (index + 1) * config.samples])
        return with_records(packet, context, records)

    def _write(self, record: dict[str, Any], replies: Sequence[Reply]) -> None:
        config = self._config
        answers = [reply.text if reply.error is None else None for reply in replies]
        sure = [reply.confidence for reply in replies]
        record[config.output] = answers if config.samples > 1 else answers[0]
        if config.confidence:
            record["confidence"] = sure if config.samples > 1 else sure[0]
        if config.on_error == "record":
            record["error"] = next((reply.error for reply in replies if reply.error is not None), None)

    def _route(self, record: Mapping[str, Any]) -> str:
        field = self._config.route_field
        value = None if field is None else record.get(field)
        return value if isinstance(value, str) and value in self._config.routes else _DEFAULT

    def _answerer(self, route: str) -> Answerer:
        if route not in self._answerers:
            changes: dict[str, Any] = {}
            if route != _DEFAULT:
                chosen = self._config.routes[route]
                changes = {"model": chosen.model, "model_hint": None, "url": chosen.url, "api_key": chosen.api_key}
            self._answerers[route] = open_answerer(self._config.model_copy(update=changes))
        return self._answerers[route]
