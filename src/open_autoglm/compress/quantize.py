# SPDX-License-Identifier: Apache-2.0
"""int8 weights by rounding to nearest, kept only if the task's metric stays within a tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from open_autoglm.models.checkpoint import INT8_FILE, WEIGHTS_FILE, load_model, quantize_in_place, save_int8
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.task import Task

DEFAULT_TOLERANCE: Final = 0.01
"""The share of the metric that int8 may cost before float32 stays the default."""


@dataclass(frozen=True)
class CompressionOutcome:
    """What rounding did: the metric on the validation split and the file size, before and after."""

    metric_before: float
    metric_after: float
    size_before: int
    size_after: int
    accepted: bool


def compress_to_int8(
    folder: Path,
    task: Task,
    score: Callable[[GlmForCausalLM], float],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
) -> CompressionOutcome:
    """Write `int8.safetensors` beside the float32 weights of `folder` and score both.

    score: the task's metric of a model on the validation split.
    Raises CheckpointError when the model cannot be read, StorageError when the disk refuses.
    """
    before = score(load_model(folder))
    rounded = quantize_in_place(load_model(folder), "int8")
    path = save_int8(rounded, folder)
    after = score(load_model(folder, weights="int8"))
    lost = (before - after) if task.higher_is_better else (after - before)
    return CompressionOutcome(
        metric_before=before,
        metric_after=after,
        size_before=(folder / WEIGHTS_FILE).stat().st_size,
        size_after=path.stat().st_size,
        accepted=lost <= tolerance * abs(before),
    )


__all__ = ["DEFAULT_TOLERANCE", "INT8_FILE", "CompressionOutcome", "compress_to_int8"]
