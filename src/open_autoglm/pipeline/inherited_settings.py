# SPDX-License-Identifier: Apache-2.0
"""Settings that a stage takes over from one before it: a sink without a database writes to that of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.expansion import PlacedStage
from open_autoglm.pipeline.stage import StageCatalog


def with_inherited_settings(stages: Sequence[PlacedStage], catalog: StageCatalog) -> list[PlacedStage]:
    """The stages, each with what its class `inherits`: setting -> module of the nearest stage before that has it.

    Where two that are equally near say different things, none is taken: the setting is missing then, and that is said.
    """
    known = {stage.name: stage for stage in stages}
    return [
        replace(stage, config={**stage.config, **taken}) if (taken := _inherited(stage, known, catalog)) else stage
        for stage in stages
    ]


def _inherited(stage: PlacedStage, known: Mapping[str, PlacedStage], catalog: StageCatalog) -> dict[str, Any]:
    if stage.module not in catalog:
        return {}
    try:
        wanted: Mapping[str, str] = getattr(catalog.load(stage.module), "inherits", {})
    except PipelineError:  # which is said where the stage is checked
        return {}
    found = {name: _nearest(stage, name, module, known) for name, module in wanted.items() if name not in stage.config}
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _nearest(stage: PlacedStage, name: str, module: str, known: Mapping[str, PlacedStage]) -> list[Any]:
    """What the nearest stages of a module, against the arrows, have as a setting; each value once."""
    seen: set[str] = set()
    layer = list(stage.needs)
    while layer:
        stages = [known[need] for need in layer if need in known]
        values: list[Any] = []
        for one in stages:
            if one.module == module and name in one.config and one.config[name] not in values:
                values.append(one.config[name])
        if values:
            return values
        seen.update(layer)
        layer = list(dict.fromkeys(need for one in stages for need in one.needs if need not in seen))
    return []
