# SPDX-License-Identifier: Apache-2.0
"""`rules`: what the business says about answers, as conditions over each record."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.conditions import parse_condition
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of, with_records

_NAMES = ("record",)


class Rule(BaseModel):
    """when: a condition such as `record.amount > 100`. Then: fields to set, the record to take out, or the run to
    fail. name: what the record's `rules` calls it.
    """

    model_config = ConfigDict(extra="forbid")

    when: str
    name: str | None = None
    set: dict[str, Any] = {}
    drop: bool = False
    fail: str | None = None
    stop: bool = Field(default=False, description="Look at no later rule where this one holds.")

    @field_validator("when")
    @classmethod
    def _is_condition(cls, value: str) -> str:
        try:
            parse_condition(value, _NAMES)
        except PipelineError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _does_something(self) -> Rule:
        if not self.set and not self.drop and self.fail is None:
            raise ValueError("a rule needs one of set, drop and fail")
        return self


class RulesConfig(BaseModel):
    """The rules, looked at in order; a later one sees what an earlier one set."""

    model_config = ConfigDict(extra="forbid")

    rules: list[Rule] = Field(min_length=1)


class Rules:
    """Applies rules. What is dropped goes to `payload.dropped`, so that nothing disappears."""

    config_model = RulesConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: RulesConfig) -> None:
        self._rules = [(rule, parse_condition(rule.when, _NAMES)) for rule in config.rules]

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with what the rules make of its records."""
        kept: list[dict[str, Any]] = []
        dropped: list[dict[str, Any]] = []
        for given in records_of(packet):
            record, held, is_dropped = dict(given), [], False
            for number, (rule, holds) in enumerate(self._rules, 1):
                try:
                    if not holds({"record": record}):
                        continue
                except PipelineError as error:
                    raise PipelineError(f"{name_of(record)}: {error}") from None
                name = rule.name or f"rule {number}"
                if rule.fail is not None:
                    raise PipelineError(f"{name_of(record)}: {name}: {rule.fail}")
                held.append(name)
                record.update(rule.set)
                is_dropped = is_dropped or rule.drop
                if rule.stop or rule.drop:
                    break
            if held:
                record["rules"] = held
            (dropped if is_dropped else kept).append(record)
        return with_records(packet, context, kept, dropped=dropped)
