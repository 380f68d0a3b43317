# SPDX-License-Identifier: Apache-2.0
"""Where attempts run: in warm processes of this machine, or on a Ray cluster where a stage asks for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline.attempt import StopSignal
from open_autoglm.pipeline.invocation import describe_error
from open_autoglm.pipeline.warm_pool import Attempt, AttemptOutcome, WarmPool

if TYPE_CHECKING:
    from open_autoglm.pipeline.ray_pool import RayPool


class Executors:
    """Runs each attempt where its stage wants it. Ray is loaded when a stage asks for it first. Thread-safe."""

    def __init__(self, here: WarmPool) -> None:
        self._here = here
        self._ray: RayPool | None = None
        self._lock = threading.Lock()

    def run(self, attempt: Attempt, stop: StopSignal) -> AttemptOutcome:
        """Run it and wait for its end; a failure is an outcome."""
        if attempt.resources is None or attempt.resources.executor == "local":
            return self._here.run(attempt, stop)
        try:
            pool = self._ray_pool()
        except ConfigurationError as error:
            return AttemptOutcome(failure=describe_error(error))
        return pool.run(attempt, stop)

    def close(self) -> None:
        """End what waits here, and leave the cluster."""
        self._here.close()
        if self._ray is not None:
            self._ray.close()

    def _ray_pool(self) -> RayPool:
        with self._lock:
            if self._ray is None:
                try:
                    from open_autoglm.pipeline.ray_pool import RayPool
                except ModuleNotFoundError as missing:
                    if missing.name != "ray":
                        raise
                    raise ConfigurationError(
                        "executor: ray needs Ray, which is not installed; run: pip install 'open-autoglm[ray]'"
                    ) from None
                self._ray = RayPool()
            return self._ray
