# SPDX-License-Identifier: Apache-2.0
"""The built-in stages by name. Each is a class in a file of its own, imported when a pipeline names it."""

from __future__ import annotations

from typing import Final

_CLASSES: Final = {
    "classify": "Classify",
    "confidence_gate": "ConfidenceGate",
    "embed": "Embed",
    "extract": "Extract",
    "file_sink": "FileSink",
    "file_source": "FileSource",
    "glm_router": "GlmRouter",
    "http_request": "HttpRequest",
    "notify": "Notify",
    "retrieve": "Retrieve",
    "rules": "Rules",
    "sink": "PluginSink",
    "source": "PluginSource",
    "sql_sink": "SqlSink",
    "sql_source": "SqlSource",
    "text_cleaner": "TextCleaner",
    "vote": "Vote",
    "window": "Window",
}

_COMMANDS: Final = {
    "build": "Build",
    "deploy": "Deploy",
    "evaluate": "Evaluate",
    "package": "Package",
    "quantize": "Quantize",
}
"""The product's own commands: their room knows rooms that this one must not know, so it is named and never imported."""

BUILT_IN: Final[dict[str, str]] = {
    **{name: f"{__name__}.{name}:{attribute}" for name, attribute in _CLASSES.items()},
    **{name: f"open_autoglm.command_stages.{name}:{attribute}" for name, attribute in _COMMANDS.items()},
}
"""Name -> where the code is."""
