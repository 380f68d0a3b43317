# SPDX-License-Identifier: Apache-2.0
"""The stage of `bench/pipeline.py`, which does nothing but add its name."""

from __future__ import annotations

from open_autoglm.pipeline.packet import Packet
from open_autoglm.pipeline.stage import StageContext

MODULES = {"trivial": "pipeline_stages:trivial"}


def trivial(packet: Packet, context: StageContext) -> Packet:
    return packet.with_payload({context.stage: 1})
