# SPDX-License-Identifier: Apache-2.0
"""`source`: the records that a plugin brings, from where the last run came to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from open_autoglm.errors import OpenAutoGLMError, PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stages.record_fields import with_records
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.spelling import did_you_mean


class PluginSourceConfig(BaseModel):
    """plugin: the name of one of the kind source. settings: what it is connected with."""

    model_config = ConfigDict(extra="forbid")

    plugin: str
    settings: dict[str, Any] = {}

    @field_validator("plugin")
    @classmethod
    def _is_on(cls, value: str) -> str:
        return plugin_that_is_on("source", value)


class PluginSource:
    """Asks the plugin once in a run; its cursor counts once the whole run is done."""

    config_model = PluginSourceConfig

    def __init__(self, config: PluginSourceConfig) -> None:
        self._name = config.plugin
        self._plugin = PluginRegistry().make("source", config.plugin)
        self._plugin.connect(dict(config.settings))

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with what the plugin brings as its records."""
        found = self._plugin.fetch(context.cursor)
        if not isinstance(found, tuple) or len(found) != 2:
            raise PipelineError(f"the source '{self._name}' gave a {type(found).__name__}, not records and a cursor")
        records, cursor = found
        result = with_records(packet, context, self._checked(self._plugin.preprocess(records)))
        if cursor is not None:
            context.set_cursor(cursor)
        return result

    def _checked(self, records: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
        for number, record in enumerate(records, 1):
            if not isinstance(record, Mapping):
                raise PipelineError(f"record {number} of the source '{self._name}' is a {type(record).__name__}")
            yield record


def plugin_that_is_on(kind: str, name: str) -> str:
    """The name, if a plugin of it is on. Raises ValueError, for a model of settings; imports no plugin."""
    try:
        known = PluginRegistry().enabled(kind)
    except OpenAutoGLMError as error:
        raise ValueError(str(error)) from None
    if name not in known:
        raise ValueError(f"no {kind} '{name}' is on and works{did_you_mean(name, known)} (open-autoglm plugin list)")
    return name
