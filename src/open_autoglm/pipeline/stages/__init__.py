# SPDX-License-Identifier: Apache-2.0
"""The built-in stages by name. Each is a class in a file of its own, imported when a pipeline names it."""

from __future__ import annotations

from typing import Final

_CLASSES: Final = {
    "classify": "Classify",
    "confidence_gate": "ConfidenceGate",
    "extract": "Extract",
    "file_sink": "FileSink",
    "file_source": "FileSource",
    "glm_router": "GlmRouter",
    "rules": "Rules",
    "sink": "PluginSink",
    "source": "PluginSource",
    "sql_sink": "SqlSink",
    "sql_source": "SqlSource",
    "text_cleaner": "TextCleaner",
}

BUILT_IN: Final[dict[str, str]] = {name: f"{__name__}.{name}:{attribute}" for name, attribute in _CLASSES.items()}
"""Name -> where the code is."""
