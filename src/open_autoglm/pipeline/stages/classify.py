# SPDX-License-Identifier: Apache-2.0
"""`classify`: a label for the text of each record, with its probability."""

from __future__ import annotations

import json
from typing import Any

from pydantic import model_validator

from open_autoglm.errors import ConfigurationError, PipelineError, RequestError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.answering import LocalAnswerer, ModelConfig, RemoteAnswerer, checked
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of, text_of, with_records


class ClassifyConfig(ModelConfig):
    """labels: to choose from, for a server; a classifier of ours has its own. all: keep every label's probability."""

    output: str = "label"
    labels: list[str] | None = None
    probabilities: bool = False

    @model_validator(mode="after")
    def _labels_for_servers(self) -> ClassifyConfig:
        if self.url is not None and not self.labels:
            raise ValueError("a server has to be told the labels; list them under 'labels'")
        if self.url is not None and self.probabilities:
            raise ValueError("a server does not say all probabilities; leave 'probabilities' out")
        return self


class Classify:
    """By our engine each label is scored, which gives its exact probability; a server chooses and says a confidence."""

    config_model = ClassifyConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: ClassifyConfig) -> None:
        self._config = config
        self._local = LocalAnswerer(config) if config.url is None else None
        self._remote = None
        if config.url is not None:
            system = config.system or "Choose the label that fits the text. Answer with JSON that fits the schema."
            self._remote = RemoteAnswerer(config.model_copy(update={"system": system}))
        elif config.labels and self._local is not None:
            task = self._local.llm.task
            unknown = sorted(set(config.labels) - set(task.labels if task is not None else ()))
            if unknown:
                raise ConfigurationError(f"the model {self._local.llm.name} has no label '{unknown[0]}'")

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with label and confidence in each record."""
        records = [dict(record) for record in records_of(packet)]
        texts = [text_of(record, self._config.input) for record in records]
        if self._local is not None:
            self._score(records, texts)
        else:
            self._ask(records, texts)
        return with_records(packet, context, records)

    def _score(self, records: list[dict[str, Any]], texts: list[str]) -> None:
        assert self._local is not None
        config, llm = self._config, self._local.llm
        for record, text in zip(records, texts, strict=True):
            error, found = None, {}
            try:
                (found,) = llm.classify([text])
            except RequestError as problem:
                if config.on_error == "raise" or problem.parameter == "model":
                    raise PipelineError(f"{name_of(record)}: {problem}") from None
                error = str(problem)
            allowed = {label: share for label, share in found.items() if not config.labels or label in config.labels}
            label = next(iter(allowed), None)
            record[config.output], record["confidence"] = label, allowed.get(label) if label is not None else None
            if config.probabilities:
                record["probabilities"] = allowed
            if config.on_error == "record":
                record["error"] = error

    def _ask(self, records: list[dict[str, Any]], texts: list[str]) -> None:
        assert self._remote is not None
        config = self._config
        labels = config.labels or []
        schema = {
            "type": "object",
            "properties": {"label": {"enum": labels}},
            "required": ["label"],
            "additionalProperties": False,
        }
        replies = self._remote.answer(texts, schema=schema, confidence=True)
        names = [name_of(record) for record in records]
        for record, reply in zip(records, checked(replies, names, config.on_error), strict=True):
            label, error = None, reply.error
            if error is None:
                try:
                    label = json.loads(reply.text)["label"]
                except (ValueError, KeyError, TypeError):
                    label = reply.text.strip()
                if label not in labels:
                    error = f"the server's answer is none of the labels: {reply.text[:100]!r}"
                    label = None
                    if config.on_error == "raise":
                        raise PipelineError(f"{name_of(record)}: {error}")
            record[config.output], record["confidence"] = label, reply.confidence
            if config.on_error == "record":
                record["error"] = error
