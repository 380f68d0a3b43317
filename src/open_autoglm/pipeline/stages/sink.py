# SPDX-License-Identifier: Apache-2.0
"""`sink`: records to wherever a plugin takes them, under a key by which it knows what comes again."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import RECORDS_SCHEMA, records_of
from open_autoglm.pipeline.stages.source import plugin_that_is_on
from open_autoglm.plugins.registry import PluginRegistry


class PluginSinkConfig(BaseModel):
    """plugin: the name of one of the kind sink. settings: what it is connected with."""

    model_config = ConfigDict(extra="forbid")

    plugin: str
    settings: dict[str, Any] = {}

    @field_validator("plugin")
    @classmethod
    def _is_on(cls, value: str) -> str:
        return plugin_that_is_on("sink", value)


class PluginSink:
    """Hands the plugin all records of a packet, with the key that every attempt at them has."""

    config_model = PluginSinkConfig
    input_schema = RECORDS_SCHEMA

    def __init__(self, config: PluginSinkConfig) -> None:
        self._name = config.plugin
        self._plugin = PluginRegistry().make("sink", config.plugin)
        self._plugin.connect(dict(config.settings))

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet as it came, with `written`: how many records the plugin says it has."""
        written = self._plugin.write(records_of(packet), context.idempotency_key)
        if not isinstance(written, int) or isinstance(written, bool):
            raise PipelineError(f"the sink '{self._name}' says {written!r}, not how many records it wrote")
        return packet.with_payload({**packet.payload, "written": written})
