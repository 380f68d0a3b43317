# SPDX-License-Identifier: Apache-2.0
"""Where plugins are found: entry points of installed packages, the user's folder, and `plugins/` where one works.

Nothing is imported here. A folder's plugin is used only after somebody enabled it: a folder that came with a
download must not run code because a command was started beside it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError, OpenAutoGLMError
from open_autoglm.plugins.manifest import MANIFEST_NAME, check_kind, check_name, read_manifest
from open_autoglm.storage import explained
from open_autoglm.version import __version__

GROUP: Final = "open_autoglm.plugins"
"""The entry points: `kind.name = package.module:attribute`."""

CONFIG_VARIABLE: Final = "OPEN_AUTOGLM_CONFIG"
_MOST_FILES: Final = 2000
_MOST_BYTES: Final = 64 << 20
_NO_CONTENT: Final = frozenset({"__pycache__", ".git", ".venv", ".pytest_cache"})


@dataclass(frozen=True)
class Plugin:
    """A plugin as it was found. folder: of its manifest, None for an installed package. digest: of its content.
    fault: why it cannot be used, as far as its manifest says. check_config: for trying a source or a sink.
    """

    name: str
    kind: str
    version: str
    entry: str
    origin: str
    folder: Path | None = None
    digest: str = ""
    fault: str | None = None
    check_config: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def identity(self) -> str:
        """What the state file calls it: kind, name and where it is."""
        return f"{self.kind}.{self.name}@{self.origin}"


def config_folder() -> Path:
    """The user's folder of settings: OPEN_AUTOGLM_CONFIG, or `open-autoglm` where XDG has settings."""
    if chosen := os.environ.get(CONFIG_VARIABLE):
        return Path(chosen)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "open-autoglm"


def plugin_folders() -> tuple[Path, ...]:
    """The folders whose subfolders may be plugins, the user's own first."""
    return (config_folder() / "plugins", Path("plugins").resolve())


def find_plugins(folders: tuple[Path, ...] | None = None) -> list[Plugin]:
    """Every plugin that there is, those with faults too. A name that is taken already is a fault of the later one."""
    found: list[Plugin] = []
    taken: dict[tuple[str, str], str] = {}
    for plugin in (*_installed(), *_in_folders(plugin_folders() if folders is None else folders)):
        before = taken.setdefault((plugin.kind, plugin.name), plugin.origin)
        if before != plugin.origin and plugin.fault is None:
            plugin = _with_fault(plugin, f"there is a {plugin.kind} of this name in {before}")  # noqa: PLW2901
        found.append(plugin)
    return found


def plugin_in(folder: Path) -> Plugin:
    """The plugin in a folder. Raises ConfigurationError for a manifest that is missing or wrong."""
    folder = folder.resolve()
    manifest = read_manifest(folder)
    return Plugin(
        manifest.name,
        manifest.kind,
        manifest.version,
        manifest.entry,
        str(folder),
        folder,
        digest_of(folder),
        manifest.incompatible,
        manifest.check_config,
    )


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of a plugin's files, our version and Python's.

    Raises ConfigurationError if there are too many to be a plugin.
    """
    digest = hashlib.sha256(f"{__version__} {sys.version_info[:2]}".encode())
    files = size = 0
    with explained(folder, "read"):
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if _NO_CONTENT.intersection(relative.parts) or path.is_symlink() or not path.is_file():
                continue
            files, size = files + 1, size + path.stat().st_size
            if files > _MOST_FILES or size > _MOST_BYTES:
                raise ConfigurationError(f"{folder} is too large for a plugin ({_MOST_FILES} files, 64 MiB)")
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{relative.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _installed() -> Iterator[Plugin]:
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda one: one.name):
        kind, _, name = point.name.partition(".")
        package = point.dist.name if point.dist is not None else point.module
        version = point.dist.version if point.dist is not None else "0"
        text = f"{__version__} {sys.version_info[:2]} {package}=={version} {point.name} {point.value}"
        fault = None
        try:
            check_kind(kind)
            check_name(name)
        except ValueError as error:
            fault = f"the entry point '{point.name}' is not of the form kind.name: {error}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        yield Plugin(name or point.name, kind, version, point.value, f"package {package}", None, digest, fault)


def _in_folders(folders: tuple[Path, ...]) -> Iterator[Plugin]:
    seen: set[Path] = set()
    for folder in folders:
        try:
            places = sorted(folder.iterdir()) if folder.is_dir() else []
        except OSError as error:
            yield Plugin(folder.name, "?", "?", "", str(folder), folder, fault=f"it cannot be read: {error.strerror}")
            continue
        for place in places:
            if not (place / MANIFEST_NAME).is_file() or place.resolve() in seen:
                continue
            seen.add(place.resolve())
            try:
                yield plugin_in(place)
            except OpenAutoGLMError as error:
                yield Plugin(place.name, "?", "?", "", str(place.resolve()), place.resolve(), fault=str(error))


def _with_fault(plugin: Plugin, fault: str) -> Plugin:
    from dataclasses import replace

    return replace(plugin, fault=fault)
