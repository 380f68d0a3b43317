# SPDX-License-Identifier: Apache-2.0
"""Runs a built-in stage with its settings, as a stage's process does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.events import EventLog
from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stage import StageCatalog, make_stage
from open_autoglm.pipeline.stages import BUILT_IN

Invoke = Callable[..., dict[str, Any]]


@pytest.fixture
def invoke(tmp_path: Path) -> Invoke:
    """`invoke(module, config, payload)` gives the payload that comes out; `cursors` is kept from call to call."""
    cursors: dict[str, Any] = {}

    def call(
        module: str, config: dict[str, Any], payload: dict[str, Any] | None = None, *, key: str = "run/stage/0"
    ) -> dict[str, Any]:
        stage = make_stage(StageCatalog(BUILT_IN).load(module), config)
        context = StageContext(
            tmp_path / "run", "stage", config, 1, key, None, logging.getLogger("test"), EventLog(tmp_path / "run"),
            cursors=cursors,
        )  # fmt: skip
        result = stage.invoke(Packet("s", payload or {}), context)
        assert isinstance(result, Packet)
        if "next" in cursors:
            cursors["before"] = cursors.pop("next")
        return result.payload

    (tmp_path / "run" / "stages" / "stage").mkdir(parents=True)
    return call
