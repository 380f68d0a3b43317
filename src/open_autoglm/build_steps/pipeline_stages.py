# SPDX-License-Identifier: Apache-2.0
"""The five steps as stages that a pipeline's file may name, as `build --print-pipeline` writes it.

Each has a process of its own, as in `open-autoglm build`: a step counts its time from when its process began, and what
training leaves in memory goes with it. The run's folder is what `--out` is for a build: checkpoints, leaderboard, and
bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_autoglm.errors import ConfigurationError
from open_autoglm.pipeline import Packet, StageContext


class _Step:
    own_process = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        if config:
            raise ConfigurationError("only build.data has settings: they are the whole build's")


class ReadData:
    """`build.data`: its settings are those of the build, which all later steps see."""

    own_process = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        if missing := [name for name in ("train", "budget", "seed") if name not in config]:
            raise ConfigurationError(
                f"config.{missing[0]} is missing; open-autoglm build DATA --print-pipeline writes all settings"
            )
        self._settings = dict(config)

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """See `build_steps.read_data`."""
        from open_autoglm.build_steps.read_data import read_data

        return read_data(packet.with_payload({"settings": self._settings}), context)


class SearchModels(_Step):
    """`build.search`."""

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """See `build_steps.search_models`."""
        from open_autoglm.build_steps.search_models import search_models

        return search_models(packet, context)


class TrainWinner(_Step):
    """`build.train`."""

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """See `build_steps.train_winner`."""
        from open_autoglm.build_steps.train_winner import train_winner

        return train_winner(packet, context)


class CompressModel(_Step):
    """`build.compress`."""

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """See `build_steps.compress_model`."""
        from open_autoglm.build_steps.compress_model import compress_model

        return compress_model(packet, context)


class WriteBundle(_Step):
    """`build.bundle`."""

    def invoke(self, packet: Packet, context: StageContext) -> Packet:
        """See `build_steps.write_bundle`."""
        from open_autoglm.build_steps.write_bundle import write_model_bundle

        return write_model_bundle(packet, context)
