# SPDX-License-Identifier: Apache-2.0
"""`quantize`: what `open-autoglm quantize` does, as a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from open_autoglm.command_stages.folders import BUNDLE, given_bundle
from open_autoglm.pipeline.context import StageContext
from open_autoglm.pipeline.packet import Packet


class QuantizeConfig(BaseModel):
    """As the options of `open-autoglm quantize` of the same names. model: a bundle, a GLM checkpoint folder or the NAME
    of runs/NAME; the payload's `bundle` if not given. out: the folder to write, a bundle if the model is one; the same
    settings again continue it.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str | None = None
    out: Path
    method: str = Field(default="gptq", description="rtn, gptq, awq, or a plugin of the kind quantizer.")
    bits: Literal[4, 8] = 4
    group_size: int | None = None
    symmetric: bool | None = None
    calibration: Path | None = None
    layout: Literal["awq", "gptq", "compressed-tensors"] | None = None
    samples: int = Field(default=128, ge=1)
    sequence_length: int = Field(default=512, ge=1)
    activation_order: bool = True
    compensate: bool = True
    kv_cache_scales: bool = False
    damping: float = 0.01
    seed: int = 0

    @model_validator(mode="after")
    def _has_texts(self) -> QuantizeConfig:
        if (self.method in ("gptq", "awq") or self.kv_cache_scales) and self.calibration is None:
            who = "kv_cache_scales" if self.kv_cache_scales else self.method
            raise ValueError(f"{who} needs texts like those that the model will see: 'calibration'")
        return self


class Quantize:
    """Layer by layer; an attempt that was cut off is continued after its last finished layer."""

    config_model = QuantizeConfig
    own_process = True

    def __init__(self, config: QuantizeConfig) -> None:
        self._config = config

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """The packet with `quantized`: the folder, its size and the size before. Its report is beside the weights.

        What comes of a bundle is one, and `bundle` of the stages that follow.
        """
        from open_autoglm.compress.calibration import read_calibration
        from open_autoglm.compress.derived_model import is_bundle
        from open_autoglm.compress.quantize_model import quantize_model
        from open_autoglm.compress.settings import quantization_settings

        config = self._config
        folder = given_bundle(config.model, packet)
        settings = quantization_settings(
            config.method,
            bits=config.bits,
            group_size=config.group_size,
            symmetric=config.symmetric,
            layout=config.layout,
            damping=config.damping,
            activation_order=config.activation_order,
            compensate=config.compensate,
            cache_scales=config.kv_cache_scales,
        )
        data = None
        if config.calibration is not None and settings.needs_data:
            data = read_calibration(
                config.calibration, folder, samples=config.samples, length=config.sequence_length, seed=config.seed
            )

        def tell(done: float, total: float) -> None:
            context.log.info("%s of %s", done, total)

        outcome = quantize_model(folder, config.out, settings, data, on_progress=tell)
        told: dict[str, Any] = {name: outcome.report[name] for name in ("size", "source_size", "seconds")}
        payload = {**packet.payload, "quantized": {"folder": str(outcome.folder), **told}}
        if is_bundle(outcome.folder):
            payload[BUNDLE] = str(outcome.folder.absolute())
        return packet.with_payload(payload)
