# SPDX-License-Identifier: Apache-2.0
"""The stages that files may name here: those of installed packages, found by their entry points without importing."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from open_autoglm.pipeline.stage import StageCatalog

GROUP: Final = "open_autoglm.stages"
"""The entry points: `name = package.module:attribute`."""


def default_catalog() -> StageCatalog:
    """Every stage that an installed package offers, ours included.

    Raises PipelineError when two packages offer different stages under one name.
    """
    found = [{point.name: point.value} for point in importlib.metadata.entry_points(group=GROUP)]
    return StageCatalog.of(*found)
