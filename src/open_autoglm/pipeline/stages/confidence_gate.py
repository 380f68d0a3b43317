# SPDX-License-Identifier: Apache-2.0
"""`confidence_gate`: lets sure answers pass and holds back the others."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, name_of, records_of, with_records


class ConfidenceGateConfig(BaseModel):
    """threshold: from which confidence on an answer passes. field: where a record has its confidence.

    below: what becomes of the others: `hold` moves them to `payload.held`, `mark` leaves them with `accepted: false`,
    `fail` ends the run.
    """

    model_config = ConfigDict(extra="forbid")

    threshold: float = Field(ge=0.0, le=1.0)
    field: str = "confidence"
    below: Literal["hold", "mark", "fail"] = "hold"


class ConfidenceGate:
    """Every record comes out once: among the records, or among those held."""

    config_model = ConfidenceGateConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: ConfidenceGateConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with `accepted` in each record."""
        config = self._config
        passed: list[dict[str, Any]] = []
        held: list[dict[str, Any]] = []
        for record in records_of(packet):
            value = record.get(config.field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise PipelineError(
                    f"{name_of(record)} has no number in '{config.field}'; let the stage before give it "
                    "(glm_router: confidence: true)"
                )
            accepted = value >= config.threshold
            if not accepted and config.below == "fail":
                raise PipelineError(f"{name_of(record)}: {config.field} {value:g} is below {config.threshold:g}")
            target = passed if accepted or config.below == "mark" else held
            target.append({**record, "accepted": accepted})
        more = {"held": held} if config.below == "hold" else {}
        return with_records(packet, context, passed, **more)
