# SPDX-License-Identifier: Apache-2.0
"""Durable pipelines: stages with needs, retries and time limits, each in its own process, continued after a crash.

What a stage needs is loaded at once, the runner when it is first used: every stage is a process that starts anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.events import EventLog, read_events
from open_autoglm.pipeline.packet import Packet

if TYPE_CHECKING:
    from open_autoglm.pipeline.runner import run_pipeline
    from open_autoglm.pipeline.specification import PipelineSpecification, RetrySpecification, StageSpecification

__all__ = [
    "EventLog",
    "Packet",
    "PipelineSpecification",
    "RetrySpecification",
    "StageContext",
    "StageSpecification",
    "read_events",
    "run_pipeline",
]


def __getattr__(name: str) -> Any:
    if name == "run_pipeline":
        from open_autoglm.pipeline.runner import run_pipeline

        return run_pipeline
    if name in ("PipelineSpecification", "RetrySpecification", "StageSpecification"):
        from open_autoglm.pipeline import specification

        return getattr(specification, name)
    raise AttributeError(f"module 'open_autoglm.pipeline' has no attribute '{name}'")
