# SPDX-License-Identifier: Apache-2.0
"""One way to run a model on a target: everything that memory and speed depend on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """How a model runs.

    backend: `native`, `torch` or `onnx`. weights: a format of `targets.FORMATS`. kv_dtype: of the KV cache. threads: of
    the processor. sequences: computed together at most. context: tokens of each at most. weight_bytes: of the weights
    where a file tells; from the shape else.
    """

    backend: str
    weights: str
    kv_dtype: str
    threads: int
    sequences: int
    context: int
    weight_bytes: int | None = None
