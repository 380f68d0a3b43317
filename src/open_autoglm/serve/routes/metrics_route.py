# SPDX-License-Identifier: Apache-2.0
"""`GET /metrics`: what Prometheus reads."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from open_autoglm.serve.watching.watch import Watch


def add_metrics_route(app: FastAPI, watch: Watch) -> None:
    """Add the route to an application."""

    async def metrics(request: Request) -> Response:
        body, content_type = await watch.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    app.add_route("/metrics", metrics, methods=["GET"])
