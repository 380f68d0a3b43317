# SPDX-License-Identifier: Apache-2.0
"""The standard services beside ours: health, which follows `/ready`, and reflection, which says what there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION_SERVICE
from grpc_reflection.v1alpha.reflection import aio as reflection_aio

from open_autoglm.errors import OpenAutoGLMError
from open_autoglm.serve.grpc.call_guard import CallGuard
from open_autoglm.serve.grpc.calls import Context
from open_autoglm.serve.grpc.faults import end
from open_autoglm.serve.models.model_client import Models
from open_autoglm.serve.routes.health_routes import are_ready

_FOLLOW_SECONDS: Final = 0.25
"""Engines say how they are as often."""
_DOCUMENT_PATH: Final = "/openapi.json"
"""What reflection is to gRPC: the same scope."""


class HealthService(health.aio.HealthServicer):  # pyright: ignore[reportAttributeAccessIssue] - it is there
    """grpc.health.v1.Health without a key, as `/ready`. services: names that it knows, besides the empty one."""

    def __init__(self, models: Models, guard: CallGuard, services: Sequence[str]) -> None:
        super().__init__()
        self._models, self._guard, self._services = models, guard, ("", *services)
        self._last: bool | None = None

    async def follow(self) -> None:
        """Say what `/ready` says, until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(_FOLLOW_SECONDS)

    async def refresh(self) -> None:
        """Say what `/ready` says now."""
        is_ready = are_ready(self._models.statuses())
        if is_ready == self._last:
            return
        self._last = is_ready
        status = HealthCheckResponse.SERVING if is_ready else HealthCheckResponse.NOT_SERVING
        for name in self._services:
            await self.set(name, status)

    async def Check(self, request: HealthCheckRequest, context: Context) -> Any:  # noqa: N802 - gRPC's name
        """How a service is now."""
        await self.refresh()
        return await super().Check(request, context)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:  # noqa: N802 - gRPC's name
        """How a service is, now and whenever it changes."""
        try:
            with self._guard.open_call(works=False):
                await super().Watch(request, context)
        except OpenAutoGLMError as error:
            await end(context, error)


class ReflectionService(reflection_aio.ReflectionServicer):
    """grpc.reflection.v1alpha.ServerReflection, for those who may read `/openapi.json`."""

    def __init__(self, guard: CallGuard, services: Sequence[str]) -> None:
        super().__init__((*services, REFLECTION_SERVICE))
        self._guard = guard

    async def ServerReflectionInfo(self, request_iterator: Any, context: Context) -> AsyncIterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  # noqa: N802 - gRPC's name
        """Answer each question."""
        try:
            with self._guard.open_call(works=False):
                metadata = tuple(context.invocation_metadata() or ())
                admitted = self._guard.admit(_DOCUMENT_PATH, metadata, context.peer())
                with self._guard.charged(admitted):
                    replies: Any = super().ServerReflectionInfo(request_iterator, context)
                    async for reply in replies:
                        yield reply
        except OpenAutoGLMError as error:
            await end(context, error)
