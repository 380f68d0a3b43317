# SPDX-License-Identifier: Apache-2.0
"""`/health` (this process lives), `/ready` (a model has just computed a step), `/v1/models` (what there is)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

from open_autoglm.serve.models.model_client import Models, ModelStatus


def add_health_routes(app: Starlette, models: Models) -> None:
    """Add the routes to an application."""

    async def list_models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model_card(status) for status in models.statuses()]})

    async def get_model(request: Request) -> JSONResponse:
        name = models.resolve(request.path_params["model_id"])
        return JSONResponse(next(model_card(status) for status in models.statuses() if status.name == name))

    async def health(_: Request) -> JSONResponse:
        """Whether this process lives and takes requests; what the engines do is `/ready`'s matter."""
        statuses = models.statuses()
        stopping = any(status.state == "stopping" for status in statuses)
        stats = [status.stats for status in statuses if status.stats is not None]
        body = {
            "status": "stopping" if stopping else "ok",
            "model": statuses[0].name,
            "running": sum(item.num_running for item in stats),
            "waiting": sum(item.num_waiting for item in stats),
            "kv_blocks": {
                "free": sum(item.free_blocks for item in stats),
                "total": sum(item.total_blocks for item in stats),
            },
        }
        return JSONResponse(body, 503 if stopping else 200)

    async def ready(_: Request) -> JSONResponse:
        """Whether every model that is loaded has computed a step within the last seconds."""
        statuses = models.statuses()
        body = {
            "status": "ready" if (is_up := are_ready(statuses)) else "not ready",
            "models": {status.name: _readiness(status) for status in statuses},
        }
        return JSONResponse(body, 200 if is_up else 503)

    app.add_route("/v1/models", list_models, methods=["GET"])
    app.add_route("/v1/models/{model_id:path}", get_model, methods=["GET"])
    app.add_route("/health", health, methods=["GET"])
    app.add_route("/ready", ready, methods=["GET"])


def are_ready(statuses: Sequence[ModelStatus]) -> bool:
    """Whether every model that is loaded has computed a step within the last seconds, and not all are down."""
    return not any(map(_is_away, statuses)) and any(status.state != "failed" for status in statuses)


def _is_away(status: ModelStatus) -> bool:
    """Whether a model that was loaded does not answer."""
    return status.state in ("restarting", "stopping") or (status.state == "ready" and not status.is_ready)


def _readiness(status: ModelStatus) -> dict[str, Any]:
    body: dict[str, Any] = {"state": status.state, "ready": status.is_ready}
    return body if status.reason is None else {**body, "reason": status.reason}


def model_card(status: ModelStatus) -> dict[str, Any]:
    """A model as `/v1/models` lists it."""
    return {
        "id": status.name,
        "object": "model",
        "created": status.created,
        "owned_by": "open-autoglm",
        "max_model_len": None if status.card is None else status.card.max_context,
        "task": None if status.card is None or status.card.task is None else status.card.task["kind"],
        "aliases": list(status.aliases),
        "state": status.state,
        "version": status.version,
    }
