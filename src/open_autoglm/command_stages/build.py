# SPDX-License-Identifier: Apache-2.0
"""`build`: what `open-autoglm build` does, as a stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from open_autoglm.command_stages.folders import BUNDLE
from open_autoglm.command_stages.output_log import output_to_log
from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet


class BuildConfig(BaseModel):
    """As the options of `open-autoglm build` of the same names. data: a file or a folder; the payload's `file`, as
    `file_sink` gives it, if not given. out: the run folder; the same settings again continue it. constraint:
    `latency_ms`, `tokens_per_s`, `memory_mb`, `size_mb`.
    """

    model_config = ConfigDict(extra="forbid")

    data: str | None = None
    out: str
    valid: str | None = None
    test: str | None = None
    task: str | None = None
    columns: dict[str, str] | None = None
    base: str | None = None
    target: str = "cpu"
    budget: str = "15m"
    trials: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    seed: int = 0
    mask_pii: bool = False
    remove_near_duplicates: bool = False
    metric: str | None = None
    space: str | None = None
    constraint: dict[str, float] = {}
    executor: Literal["auto", "inline", "process", "ray"] = "auto"
    parallel_trials: int | None = Field(default=None, ge=1)
    adapter: dict[str, Any] | None = None
    tolerance: str = "1%"
    license: str | None = None


class Build:
    """Continues where an earlier attempt was cut off; its progress is in the attempt's log."""

    config_model = BuildConfig
    own_process = True

    def __init__(self, config: BuildConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with `bundle`, the folder, and `build`: its task, metrics and seconds."""
        from open_autoglm.build_pipeline import build

        given = self._config.model_dump(exclude={"data", "constraint"})
        data = self._config.data if self._config.data is not None else packet.payload.get("file")
        if not isinstance(data, str):
            raise PipelineError("name the data with config.data, or let a file_sink before give payload.file")
        with output_to_log(context.log):
            result = build(data, hardware_constraint=self._config.constraint, **given)
        told = result.to_dict()
        told["bundle"] = str(result.bundle.absolute())
        context.log.info("bundle %s, %s", result.bundle, result.metrics)
        return packet.with_payload({**packet.payload, BUNDLE: told.pop("bundle"), "build": told})
