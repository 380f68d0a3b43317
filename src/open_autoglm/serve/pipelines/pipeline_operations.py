# SPDX-License-Identifier: Apache-2.0
"""The routes about pipelines for our OpenAPI document."""

from __future__ import annotations

from typing import Final

from open_autoglm.serve.pipelines.pipeline_requests import (
    CheckRequest,
    EventsQuery,
    Nothing,
    RetryRequest,
    RunQuery,
    RunsQuery,
    StartRequest,
    WebhookBody,
)
from open_autoglm.serve.routes.openapi_document import Operation

PIPELINE_OPERATIONS: Final = (
    Operation("/v1/pipelines", "get", "What pipelines there are", "Pipelines", query=Nothing),
    Operation("/v1/pipelines/{pipeline}", "get", "One pipeline", "Pipeline", query=Nothing),
    Operation(
        "/v1/pipelines/{pipeline}/validate", "post", "Check a pipeline with settings", "Pipeline", CheckRequest,
        optional_body=True,
    ),
    Operation(
        "/v1/pipelines/{pipeline}/runs", "post", "Start a run", "StartedRun", StartRequest, status=202,
        optional_body=True,
    ),
    Operation("/v1/runs", "get", "The runs, the newest first", "Runs", query=RunsQuery),
    Operation("/v1/runs/{run}", "get", "A run with its stages", "RunDetails", query=RunQuery),
    Operation(
        "/v1/runs/{run}/events", "get", "How a run goes on", "RunEvent", query=EventsQuery, media=("text/event-stream",)
    ),
    *(
        Operation(
            f"/v1/runs/{{run}}/{name}", "post", summary, "ChangedRun", model, conflict=True, optional_body=True
        )
        for name, summary, model in (
            ("cancel", "Stop a run for good", Nothing),
            ("pause", "Let a run finish what it is at, and rest", Nothing),
            ("resume", "Let a paused run go on", Nothing),
            ("retry", "Run a run that has ended again", RetryRequest),
        )
    ),
    Operation("/v1/schedules", "get", "What starts by itself", "Schedules", query=Nothing),
    Operation(
        "/v1/schedules/{pipeline}/pause", "post", "Let a pipeline not start by itself", "Schedule", Nothing,
        optional_body=True,
    ),
    Operation(
        "/v1/schedules/{pipeline}/resume", "post", "Let a pipeline start by itself again", "Schedule", Nothing,
        optional_body=True,
    ),
    Operation(
        "/hooks/{name}", "post", "News that start a run, signed by their sender", "WebhookRun", WebhookBody, status=202,
        signed=True,
    ),
)  # fmt: skip
