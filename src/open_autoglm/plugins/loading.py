# SPDX-License-Identifier: Apache-2.0
"""How a plugin's code comes into a process: the seam at which a sandbox or a check of signatures goes in."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any, Protocol

from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.discovery import Plugin


class Loader(Protocol):
    """Brings a plugin's entry into this process, or an object that stands for it."""

    def load(self, plugin: Plugin) -> Any:
        """What the entry names. Raises ConfigurationError with the reason when it cannot be loaded."""
        ...


class DirectLoader:
    """Imports the code into this process, with all rights of it.

    A folder becomes a package of a name of its own: two plugins may both have a `main.py`, and `from . import x` works.
    """

    def load(self, plugin: Plugin) -> Any:
        """See `Loader`."""
        module, _, attribute = plugin.entry.partition(":")
        try:
            if plugin.folder is not None:
                package = f"open_autoglm_plugin_{plugin.name}_{plugin.digest[:12]}"
                if package not in sys.modules:
                    made = types.ModuleType(package, f"The plugin {plugin.name}.")
                    made.__path__ = [str(plugin.folder)]
                    sys.modules[package] = made
                module = f"{package}.{module}"
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except Exception as error:
            raise ConfigurationError(
                f"the {plugin.kind} '{plugin.name}' in {plugin.origin} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        return found
