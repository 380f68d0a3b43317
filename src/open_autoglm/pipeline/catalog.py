# SPDX-License-Identifier: Apache-2.0
"""The stages that files may name here: ours, those of installed packages by their entry points, and of plugins."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from open_autoglm.pipeline.stage import StageCatalog
from open_autoglm.pipeline.stages import BUILT_IN
from open_autoglm.plugins.stages import stage_targets

BUILD_STEPS: Final[dict[str, str]] = {
    f"build.{name}": f"open_autoglm.build_steps.pipeline_stages:{attribute}"
    for name, attribute in {
        "data": "ReadData",
        "search": "SearchModels",
        "train": "TrainWinner",
        "compress": "CompressModel",
        "bundle": "WriteBundle",
    }.items()
}
"""The steps of a build; they know rooms that this one must not know, so they are named and never imported here."""

GROUP: Final = "open_autoglm.stages"
"""The entry points: `name = package.module:attribute`."""


def default_catalog() -> StageCatalog:
    """Every stage there is: built in, of an installed package, or of a plugin that is on. Imports none of them.

    Raises PipelineError when two offer different stages under one name.
    """
    found = [{point.name: point.value} for point in importlib.metadata.entry_points(group=GROUP)]
    return StageCatalog.of(BUILT_IN, BUILD_STEPS, *found, stage_targets())
