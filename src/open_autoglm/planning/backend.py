# SPDX-License-Identifier: Apache-2.0
"""Which backend computes on a target, and why not the others."""

from __future__ import annotations

from dataclasses import dataclass

from open_autoglm.planning.efficiency import has_kernels
from open_autoglm.targets import Target

_UNPACKS = "computes int8 by unpacking it, so that it saves memory but no time"


@dataclass(frozen=True)
class BackendAdvice:
    """A backend for a target.

    name: of the backend to take. reason: one sentence. refused: other backends, and a sentence on each. instead: what
    to know where this one takes too much memory and another less.
    """

    name: str
    reason: str
    refused: dict[str, str]
    instead: BackendAdvice | None = None


def advise_backend(target: Target) -> BackendAdvice:
    """The backend for a target."""
    if target.kind == "nvidia-gpu":
        return BackendAdvice(
            "torch",
            "it is the backend that computes on a GPU",
            {"native": "computes on the processor, not on the GPU", "onnx": "computes on the processor here"},
        )
    if has_kernels(target):
        return BackendAdvice(
            "native",
            "its own kernels run on this processor, 1.4 to 2 times as fast as other engines (docs/performance.md)",
            {"onnx": "slower in every column of docs/performance.md; its cache is float32", "torch": _UNPACKS},
        )
    return BackendAdvice(
        "onnx",
        "the native engine has only plain loops for a processor without AVX2 or NEON's dot products",
        {"native": "its plain loops compute int8 at a tenth of what the processor could do", "torch": _UNPACKS},
        instead=BackendAdvice(
            "native",
            "the onnx backend, likely faster on this processor, does not fit; this one computes in plain loops here",
            {"onnx": "does not fit", "torch": _UNPACKS},
        ),
    )
