# SPDX-License-Identifier: Apache-2.0
"""Which plugins are on: the state file, and what the rest of the program asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.discovery import Plugin, config_folder, find_plugins
from open_autoglm.plugins.loading import DirectLoader, Loader
from open_autoglm.plugins.probe import known_result, probe, remember
from open_autoglm.spelling import did_you_mean
from open_autoglm.storage import FolderLock, read_json, write_json

ENABLED: Final = "enabled"
DISABLED: Final = "disabled"
NEW: Final = "new"
FAULTY: Final = "faulty"


@dataclass(frozen=True)
class PluginStatus:
    """A plugin and how it stands: enabled, disabled, new (nobody has decided yet) or faulty, with the reason."""

    plugin: Plugin
    state: str
    reason: str | None = None


class PluginRegistry:
    """The plugins of this user. loader: brings their code into this process.

    A package's plugins are on until somebody disables them: installing it was the decision. Those in folders are off
    until somebody enables them.
    """

    def __init__(self, loader: Loader | None = None, *, folders: tuple[Path, ...] | None = None) -> None:
        self._loader = loader or DirectLoader()
        self._folders = folders
        self._state_file = config_folder() / "plugins.json"

    def statuses(self) -> list[PluginStatus]:
        """Every plugin with its state; those that are on are tried if their content is not known yet.

        Raises StorageError for a state file that cannot be read.
        """
        decisions = self._decisions()
        return [self._status(plugin, decisions) for plugin in find_plugins(self._folders)]

    def enabled(self, kind: str) -> dict[str, Plugin]:
        """The plugins of a kind that are on and work, by name."""
        decisions = self._decisions()
        statuses = (self._status(plugin, decisions) for plugin in find_plugins(self._folders) if plugin.kind == kind)
        return {one.plugin.name: one.plugin for one in statuses if one.state == ENABLED}

    def load(self, kind: str, name: str) -> Any:
        """The entry of a plugin that is on. Raises ConfigurationError if there is none or it cannot be loaded."""
        known = self.enabled(kind)
        if name not in known:
            raise ConfigurationError(
                f"there is no {kind} '{name}' that is enabled and works{did_you_mean(name, known)} "
                "(open-autoglm plugin list)"
            )
        return self._loader.load(known[name])

    def make(self, kind: str, name: str) -> Any:
        """An object of a plugin's class. Raises ConfigurationError as `load` does, and when it cannot be made."""
        entry = self.load(kind, name)
        try:
            return entry()
        except Exception as error:
            raise ConfigurationError(f"the {kind} '{name}' cannot be made: {type(error).__name__}: {error}") from error

    def reader_of(self, suffix: str) -> str | None:
        """The reader that is on for files of this suffix; None if there is none. Imports nothing: the probe knows."""
        for name, plugin in self.enabled("reader").items():
            if suffix.lower() in known_result(plugin).suffixes:
                return name
        return None

    def enable(self, name: str) -> PluginStatus:
        """Switch a plugin on, after trying it. Raises ConfigurationError when it has a fault."""
        plugin = self._find(name)
        result = remember(plugin, probe(plugin))
        if result.fault is not None:
            raise ConfigurationError(f"{plugin.kind} '{plugin.name}' in {plugin.origin} stays off: {result.fault}")
        self._decide(plugin, on=True)
        return PluginStatus(plugin, ENABLED)

    def disable(self, name: str) -> PluginStatus:
        """Switch a plugin off. Raises ConfigurationError if there is none of this name."""
        plugin = self._find(name)
        self._decide(plugin, on=False)
        return PluginStatus(plugin, DISABLED)

    def _find(self, name: str) -> Plugin:
        """The plugin of a name, or of `kind.name` where two kinds have it."""
        plugins = find_plugins(self._folders)
        found = [one for one in plugins if name in (one.name, f"{one.kind}.{one.name}", one.identity)]
        if not found:
            raise ConfigurationError(f"there is no plugin '{name}'{did_you_mean(name, [one.name for one in plugins])}")
        if len(found) > 1:
            names = ", ".join(one.identity for one in found)
            raise ConfigurationError(f"'{name}' can be {names}; name one of them")
        return found[0]

    def _status(self, plugin: Plugin, decisions: dict[str, bool]) -> PluginStatus:
        if plugin.fault is not None:
            return PluginStatus(plugin, FAULTY, plugin.fault)
        decision = decisions.get(plugin.identity, True if plugin.folder is None else None)
        if decision is None:
            return PluginStatus(plugin, NEW, f"open-autoglm plugin enable {plugin.name} switches it on")
        if not decision:
            return PluginStatus(plugin, DISABLED)
        fault = known_result(plugin).fault
        return PluginStatus(plugin, ENABLED) if fault is None else PluginStatus(plugin, FAULTY, fault)

    def _decisions(self) -> dict[str, bool]:
        if not self._state_file.exists():
            return {}
        content = read_json(self._state_file)
        plugins = content.get("plugins") if isinstance(content, dict) else None
        if not isinstance(plugins, dict):
            raise ConfigurationError(f"{self._state_file} is not a list of plugins; move it away to begin anew")
        return {str(identity): bool(on) for identity, on in plugins.items()}

    def _decide(self, plugin: Plugin, *, on: bool) -> None:
        with FolderLock(self._state_file.parent):
            write_json(self._state_file, {"plugins": {**self._decisions(), plugin.identity: on}})
