# SPDX-License-Identifier: Apache-2.0
"""Trials that a plugin of the kind sampler proposes, held to the space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.registry import PluginRegistry
from open_autoglm.search.parameters import ParameterSpace, Value


class PluginSampler:
    """The plugin of this name. Raises ConfigurationError if it is not on or cannot be loaded."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._plugin = PluginRegistry().make("sampler", name)

    def propose(
        self, space: ParameterSpace, ended: Sequence[tuple[Mapping[str, Any], float]], seed: int
    ) -> dict[str, Value]:
        """The next trial's values. ended: parameters and value of each trial that ended; less is better.

        Raises ConfigurationError, naming the plugin, for what the space does not have.
        """
        parameters = [{"name": parameter.name, **parameter.to_dict()} for parameter in space.parameters]
        trials = [{"parameters": dict(values), "value": value} for values, value in ended]
        try:
            return space.check(dict(self._plugin.propose(parameters, trials, seed)))
        except ConfigurationError as error:
            raise ConfigurationError(f"the sampler '{self._name}', a plugin, gave no trial: {error}") from None
        except Exception as error:
            raise ConfigurationError(
                f"the sampler '{self._name}', a plugin, failed: {type(error).__name__}: {error}"
            ) from error
