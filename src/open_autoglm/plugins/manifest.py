# SPDX-License-Identifier: Apache-2.0
"""`plugin.yaml`: what a folder says about the plugin in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, field_validator

from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.interfaces import KINDS
from open_autoglm.spelling import did_you_mean
from open_autoglm.version import __version__
from open_autoglm.yaml_document import read_yaml

MANIFEST_NAME: Final = "plugin.yaml"
NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ENTRY: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class PluginManifest(BaseModel):
    """name, kind, version: of the plugin. entry: `module:attribute` in its folder. compatible: versions of
    Open-AutoGLM such as `>=0.1,<2`. check_config: settings with which `plugin check` may connect a source or a sink.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: StrictStr
    kind: StrictStr
    version: StrictStr
    entry: StrictStr
    compatible: StrictStr = ""
    check_config: dict[str, Any] | None = Field(default=None)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @field_validator("kind")
    @classmethod
    def _kind(cls, value: str) -> str:
        return check_kind(value)

    @field_validator("version")
    @classmethod
    def _version(cls, value: str) -> str:
        try:
            Version(value)
        except InvalidVersion:
            raise ValueError(f"'{value}' is no version; write it like 1.0.0") from None
        return value

    @field_validator("entry")
    @classmethod
    def _entry(cls, value: str) -> str:
        if not _ENTRY.fullmatch(value):
            raise ValueError(f"'{value}' is not of the form module:attribute")
        return value

    @field_validator("compatible")
    @classmethod
    def _compatible(cls, value: str) -> str:
        try:
            SpecifierSet(value)
        except InvalidSpecifier:
            raise ValueError(f"'{value}' names no versions; write it like >=0.1,<2") from None
        return value

    @property
    def incompatible(self) -> str | None:
        """Why it cannot be used with this version; None if it can."""
        if SpecifierSet(self.compatible).contains(__version__, prereleases=True):
            return None
        return f"it is made for Open-AutoGLM {self.compatible}, and this is {__version__}"


def check_name(name: str) -> str:
    """The name, if a plugin can have it. Raises ValueError."""
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a plugin: use small letters, digits and '_', a letter first")
    return name


def check_kind(kind: str) -> str:
    """The kind, if there is such a kind. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"there is no kind of plugin '{kind}'{did_you_mean(kind, KINDS)}")
    return kind


def read_manifest(folder: Path) -> PluginManifest:
    """The manifest of a plugin's folder. Raises ConfigurationError with its line and field."""
    document = read_yaml(folder / MANIFEST_NAME)
    if not isinstance(document.value, dict):
        raise document.fault((), "a plugin's manifest is names and values, beginning with 'name:' and 'kind:'")
    try:
        return PluginManifest.model_validate(document.value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = tuple(part for part in fault["loc"] if isinstance(part, str | int))
        key = str(place[-1]) if place else ""
        if fault["type"] == "extra_forbidden":
            known = did_you_mean(key, PluginManifest.model_fields)
            raise document.fault(place, f"unknown key{known}") from None
        if fault["type"] == "missing":
            raise document.fault((), f"'{key}' is missing") from None
        raise document.fault(place, fault["msg"].removeprefix("Value error, ")) from None


def raise_unless(name: str, kind: str) -> None:
    """Raise ConfigurationError unless a plugin can have this name and kind."""
    try:
        check_kind(kind)
        check_name(name)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
