# SPDX-License-Identifier: Apache-2.0
"""Which folder a command's stage works on: the one of its settings, or the one that an earlier stage has made."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from open_autoglm.engine.model_paths import find_model
from open_autoglm.errors import PipelineError
from open_autoglm.pipeline.packet import Packet

BUNDLE: Final = "bundle"
"""The key of the payload under which a bundle's folder is handed on."""


def given_bundle(named: str | None, packet: Packet) -> Path:
    """The bundle of the settings, else of the payload.

    Raises PipelineError when neither names one, BundleError when there is none.
    """
    found = named if named is not None else packet.payload.get(BUNDLE)
    if not isinstance(found, str):
        raise PipelineError(f"name a bundle with config.bundle, or let a stage before give payload.{BUNDLE}")
    return find_model(found)
