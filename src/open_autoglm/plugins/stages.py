# SPDX-License-Identifier: Apache-2.0
"""Stages of plugins as a pipeline's catalogue names them: `open_autoglm.plugins.stages:NAME`.

A stage's process imports what the catalogue names; asking this module for NAME loads the plugin there, so that its
code runs where the stage does.
"""

from __future__ import annotations

from typing import Any

from open_autoglm.plugins.registry import PluginRegistry


def stage_targets() -> dict[str, str]:
    """The stages of plugins that are on and work: name -> target."""
    return {name: f"{__name__}:{name}" for name in PluginRegistry().enabled("stage")}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return PluginRegistry().load("stage", name)
