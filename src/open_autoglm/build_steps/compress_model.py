# SPDX-License-Identifier: Apache-2.0
"""Step 4: int8 weights beside the float32 ones, with the metric before and after."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict

from open_autoglm.build_steps.workspace import SCORE_EXAMPLES, Workspace, say, with_result
from open_autoglm.compress.quantize import compress_to_int8
from open_autoglm.models.checkpoint import load_model, save_model
from open_autoglm.pipeline import Packet, StageContext


def compress_model(packet: Packet, context: StageContext) -> Packet:
    """Step 4: int8 weights beside the float32 ones, with the metric before and after, in `compress/`."""
    started = time.monotonic()
    work = Workspace(packet, context)
    folder = context.folder / "compress"
    shutil.rmtree(folder, ignore_errors=True)
    save_model(load_model(context.folder / "train" / "model"), folder)
    outcome = compress_to_int8(
        folder,
        work.prepared.task,
        lambda model: work.score(model, work.prepared.valid[:SCORE_EXAMPLES]).value,
    )
    result = {**asdict(outcome), "seconds": round(time.monotonic() - started, 2)}
    context.emit({"event": "compressed", **result})
    say(
        f"compress: int8 takes {outcome.size_after / 1e6:.2f} MB for {outcome.size_before / 1e6:.2f} MB; "
        f"{work.prepared.task.metric} {outcome.metric_before:.4f} -> {outcome.metric_after:.4f}"
        + ("" if outcome.accepted else "; too much lost, float32 stays the default")
    )
    return with_result(packet, "compress", result)
