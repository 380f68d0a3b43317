# SPDX-License-Identifier: Apache-2.0
"""The flags of `serve`, made from its settings, so that each is declared once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from open_autoglm.serve.configuration import Configuration, configure
from open_autoglm.serve.option_fields import Option, options_of
from open_autoglm.serve.settings import API_KEY_VARIABLE, VARIABLE_PREFIX, ServeSettings

SETTINGS_PANEL: Final = f"Settings (also in --config, and in the environment as {VARIABLE_PREFIX}NAME)"
_OLD_NAMES: Final = ("api_key", "allow_unauthenticated", "served_model_name")
"""Flags that had a second spelling before there were settings."""
_TYPES: Final = {str: str | None, int: int | None, float: float | None, tuple: list[str] | None, bool: bool | None}


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each of `ServeSettings`; it finds those that were given in `**flags`."""
    vars(command).pop("__signature__", None)  # of an earlier command tree in this process
    signature = inspect.signature(command, eval_str=True)
    own = [item for item in signature.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    added = [
        inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(item))
        for item in options_of(ServeSettings)
    ]
    command.__signature__ = signature.replace(parameters=[*own, *added])
    return command


def read_settings(config: Path | None, flags: Mapping[str, Any]) -> Configuration:
    """The settings from the file, the environment of this process and the flags that were given.

    Raises ConfigurationError as `configure` does.
    """
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in flags.items()}
    return configure(config, os.environ, {name: value for name, value in given.items() if value not in (None, ())})


def _annotation(item: Option) -> Any:
    names = (item.flag, "--" + item.name) if item.name in _OLD_NAMES else (item.flag,)
    declared = [f"{name}/--no-{name[2:]}" for name in names] if item.kind is bool else list(names)
    default = "" if item.default in (None, (), False) else f" (default: {item.default})"
    variable = f" Rather in the environment: {API_KEY_VARIABLE}." if item.name == "api_key" else ""
    text = f"{item.help}{default}{variable}"
    return Annotated[_TYPES[item.kind], typer.Option(*declared, help=text, rich_help_panel=SETTINGS_PANEL)]
