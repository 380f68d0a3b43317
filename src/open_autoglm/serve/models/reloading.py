# SPDX-License-Identifier: Apache-2.0
"""The models of a running server, taken anew from their file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from open_autoglm.errors import ConfigurationError, OpenAutoGLMError
from open_autoglm.serve.models.model_pool import ModelEntry, ModelPool
from open_autoglm.serve.models.routing import RoutingPolicy


@dataclass(frozen=True)
class ModelsReload:
    """read: the models and routes as the file has them now. policy: the routes that are served."""

    pool: ModelPool
    policy: RoutingPolicy | None
    read: Callable[[], tuple[Sequence[ModelEntry], RoutingPolicy | None]]

    async def reload(self) -> str:
        """Read the file again and serve what it says, without cutting any answer off.

        Returns a line that says what came of it; when something is wrong, all stays as it was. Routes need a restart.
        """
        try:
            entries, policy = self.read()
            self._check_routes(entries)
            changed = await self.pool.take(entries)
        except OpenAutoGLMError as error:
            return f"reload: the models stay as they were: {error}"
        told = f"changed: {', '.join(changed)}" if changed else "nothing changed"
        return f"reload: models: {told}" + ("; needs a restart: router" if policy != self.policy else "")

    def _check_routes(self, entries: Sequence[ModelEntry]) -> None:
        names = {name for entry in entries for name in (entry.name, *entry.aliases)}
        for route in () if self.policy is None else self.policy.routes:
            for name in route.models:
                if name not in names:
                    raise ConfigurationError(f"route '{route.name}' needs the model '{name}', which the file lacks now")
