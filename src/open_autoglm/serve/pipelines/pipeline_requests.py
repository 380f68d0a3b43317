# SPDX-License-Identifier: Apache-2.0
"""What may be asked about pipelines and runs: bodies and queries, each field known or refused."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StrictStr

from open_autoglm.serve.routes.request_model import RequestModel

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
RUN_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$"
_MOST_SETTINGS: Final = 100

Name = Annotated[StrictStr, Field(pattern=NAME_PATTERN)]
_Settings = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=200)], Any],
    Field(max_length=_MOST_SETTINGS, description="Values stronger than the file's, by names like fetch.config.limit."),
]


class Nothing(RequestModel):
    """No fields."""


class CheckRequest(RequestModel):
    """What to check a pipeline with."""

    settings: _Settings | None = Field(None, alias="set")


class StartRequest(RequestModel):
    """What to start a run with."""

    payload: dict[str, Any] | None = Field(None, description="What the first stages get.")
    settings: _Settings | None = Field(None, alias="set")
    priority: Literal["low", "normal", "high", "urgent"] | None = Field(None, description="The file's by default.")
    key: Annotated[StrictStr, Field(pattern=r"^[!-~]{1,200}$")] | None = Field(
        None, description="A second run of this pipeline with the same key is not started."
    )


class RetryRequest(RequestModel):
    """Where to begin again; with what failed or was cancelled, if not given."""

    from_stage: Annotated[StrictStr, Field(min_length=1, max_length=200)] | None = Field(
        None, alias="from", description="This stage and all that follow it are done anew."
    )


class RunsQuery(RequestModel):
    """Which runs to list."""

    pipeline: Name | None = None
    state: Literal["waiting", "running", "done", "failed", "cancelled", "paused"] | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 20
    after: Annotated[StrictStr, Field(pattern=RUN_PATTERN)] | None = Field(
        None, description="The last run of the page before."
    )


class RunQuery(RequestModel):
    """How much of a run to show."""

    lines: Annotated[int, Field(ge=0, le=1000)] = Field(20, description="The last lines of each stage's log.")


class EventsQuery(RequestModel):
    """Where a stream goes on."""

    after: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(0, description="The id of the last event that is known.")


class WebhookBody(RequestModel):
    """Any JSON object: what the first stages get.

    It comes with the headers X-Webhook-Timestamp, X-Webhook-Signature and, if the sender has one, X-Webhook-Delivery.
    """

    model_config = ConfigDict(extra="allow")
