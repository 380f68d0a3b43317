# SPDX-License-Identifier: Apache-2.0
"""`GET /metrics`: what Prometheus reads."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from open_autoglm.serve.watching.watch import Watch


def add_metrics_route(app: Starlette, watch: Watch) -> None:
    """Add the route to an application."""

    async def metrics(request: Request) -> Response:
        body, content_type = await watch.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    app.add_route("/metrics", metrics, methods=["GET"])
