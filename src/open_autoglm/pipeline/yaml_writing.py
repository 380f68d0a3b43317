# SPDX-License-Identifier: Apache-2.0
"""A specification as the YAML that it could have been read from."""

from __future__ import annotations

from typing import Any

import yaml

from open_autoglm.pipeline.specification import (
    PipelineSpecification,
    ResourceSpecification,
    RetrySpecification,
    StageSpecification,
)


def write_pipeline(specification: PipelineSpecification) -> str:
    """The file's text. Reading it gives the same pipeline, if its retries are of the kinds that a file can say."""
    content = {"name": specification.name, "pipeline": [_stage(specification, stage) for stage in specification.stages]}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


def _stage(specification: PipelineSpecification, stage: StageSpecification) -> dict[str, Any]:
    values: dict[str, Any] = {"stage": stage.stage, "module": stage.module}
    values["needs"] = list(specification.needs[stage.stage])
    if stage.config:
        values["config"] = stage.config
    if stage.timeout_seconds is not None:
        values["timeout"] = stage.timeout_seconds
    if stage.retry != RetrySpecification():
        values["retry"] = {
            "attempts": stage.retry.attempts,
            "backoff": "fixed" if stage.retry.backoff_factor == 1 else "exponential",
            "wait": stage.retry.backoff_seconds,
            "jitter": stage.retry.jitter > 0,
        }
    if stage.resources != ResourceSpecification():
        values["resources"] = {
            name: value for name, value in stage.resources.to_dict().items() if value or name == "cpu"
        }
    if stage.when is not None:
        values["when"] = stage.when
    if stage.for_each is not None:
        values["for_each"] = stage.for_each.to_dict()
    return values
