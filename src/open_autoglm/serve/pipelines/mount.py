# SPDX-License-Identifier: Apache-2.0
"""Adds all routes about pipelines to an application, where its operator has switched them on."""

from __future__ import annotations

from starlette.applications import Starlette

from open_autoglm.serve.pipelines.pipeline_desk import PipelineDesk
from open_autoglm.serve.pipelines.pipeline_routes import PipelineRoutes
from open_autoglm.serve.pipelines.pipeline_settings import HOOKS_PREFIX
from open_autoglm.serve.pipelines.pipelines_page import mount_page
from open_autoglm.serve.pipelines.run_events import RunEvents
from open_autoglm.serve.pipelines.webhook_route import WebhookRoute
from open_autoglm.serve.settings import ServeSettings


def mount_pipelines(app: Starlette, settings: ServeSettings) -> PipelineDesk:
    """Add the routes; whoever ends the application closes what is returned.

    Raises ConfigurationError or StorageError for a folder or database that cannot be used.
    """
    desk = PipelineDesk(settings.pipelines)
    PipelineRoutes(desk, settings.max_body).add_to(app)
    app.add_route("/v1/runs/{run}/events", RunEvents(desk).stream, methods=["GET"])
    hooks = WebhookRoute(desk, settings.pipelines.webhook_body)
    app.add_route(HOOKS_PREFIX + "{name:path}", hooks.answer, methods=["POST"])
    mount_page(app)
    return desk
