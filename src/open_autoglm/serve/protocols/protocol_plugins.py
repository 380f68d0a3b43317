# SPDX-License-Identifier: Apache-2.0
"""Makes the plugins that speak other protocols, before any model is loaded, so that a faulty one is told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from open_autoglm.plugins.interfaces import ProtocolPlugin
from open_autoglm.plugins.registry import PluginRegistry

Protocols = Mapping[str, ProtocolPlugin]
"""Plugins by the names of their protocols."""


def make_protocols(names: Sequence[str]) -> Protocols:
    """The plugins of these names. Raises ConfigurationError for one that is not there, not on, or faulty."""
    registry = PluginRegistry()
    return {name: registry.make("protocol", name) for name in names}
