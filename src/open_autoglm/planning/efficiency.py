# SPDX-License-Identifier: Apache-2.0
"""What share of a device's limits each engine reaches, and what a step costs beside: measured, each with its source.

The shares of the native engine were taken on two Zen 3 cores with AVX2. They are carried over to other processors as
they are, since nothing was measured there; a plan says so. On the machine that plans, `timing.py` measures instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from open_autoglm.targets import Target

REFERENCE_RATE_PER_CORE: Final = 102e9
"""float32 operations per second of one core of the machine that the costs in seconds were taken on."""

MEASURED_FEATURE: Final = "avx2"
"""The instruction set that the native engine's shares were taken with."""

KERNEL_FEATURES: Final = ("avx2", "asimddp")
"""Of which a processor needs one for the native engine's own kernels (`csrc/processor.cpp`)."""


@dataclass(frozen=True)
class Efficiency:
    """What a backend makes of a device.

    prompt, batch: share of the rate of operations that matrix products reach, by format, over a prompt's tokens and
    over one token of several sequences. reading: share of the bandwidth at which weights are read. cached: the same for
    weights that fit the last cache; above 1, as a cache is faster. cache_reading: the share at which keys and values
    are read. prompt_attention: share of the float32 rate of attention over a prompt; attention: over the cache, by the
    cache's type. step_seconds, sequence_seconds, layer_seconds: of one step, and for each of its sequences and layers,
    on a core of the reference rate. process_bytes: of a process that has the backend loaded but no model.
    measured: whether it was measured at all. sources: a sentence for each.
    """

    prompt: Mapping[str, float]
    batch: Mapping[str, float]
    reading: float
    cached: float
    cache_reading: float
    prompt_attention: float
    attention: Mapping[str, float]
    step_seconds: float
    sequence_seconds: float
    layer_seconds: float
    process_bytes: int
    measured: bool
    sources: tuple[str, ...]


SERVER_BYTES: Final = 21_000_000
"""What `open-autoglm serve` takes beyond a process with the engine alone (bench/results/startup_snips.json)."""

_NATIVE: Final = Efficiency(
    prompt=MappingProxyType({"int4": 0.61, "int8": 0.64, "bfloat16": 0.50, "float32": 0.50}),
    batch=MappingProxyType({"int4": 0.56, "int8": 0.53, "bfloat16": 0.50, "float32": 0.50}),
    reading=0.80,
    cached=1.25,
    cache_reading=0.42,
    prompt_attention=0.50,
    attention=MappingProxyType({"float32": 0.30, "bfloat16": 0.27, "int8": 0.35}),
    step_seconds=25e-6,
    sequence_seconds=4.5e-6,
    layer_seconds=0.0,
    process_bytes=73_000_000,
    measured=True,
    sources=(
        "int4 and reading from memory: medians of bench/results/engine_edge-1.5b_int4.json",
        "int8 and reading from the cache: medians of bench/results/engine_built-19m_int8.json and docs/performance.md, "
        "with the attention of bench/results/step_times_built-19m_int8.json taken off the prompt",
        "bfloat16 and float32: bench/engine.py --shape edge-150m beside other programs, so rounded to a half",
        "attention over the cache: bench/results/long_context_*.json from 2,048 tokens of context on",
        "costs of a step and a sequence: engine less model step in bench/results/engine_built-19m_int8.json",
        "process: bench/results/startup_snips.json",
    ),
)
_UNMEASURED_GPU: Final = Efficiency(
    prompt=MappingProxyType({"int4": 0.5, "int8": 0.5, "bfloat16": 0.5, "float32": 0.5}),
    batch=MappingProxyType({"int4": 0.5, "int8": 0.5, "bfloat16": 0.5, "float32": 0.5}),
    reading=0.6,
    cached=0.6,
    cache_reading=0.2,
    prompt_attention=0.3,
    attention=MappingProxyType({"float32": 0.3, "bfloat16": 0.3}),
    step_seconds=500e-6,
    sequence_seconds=10e-6,
    layer_seconds=300e-6,
    process_bytes=600_000_000,
    measured=False,
    sources=("the torch backend on a GPU: assumed, not measured by us",),
)
_ONNX: Final = Efficiency(
    prompt=MappingProxyType({"int4": 0.36, "int8": 0.42, "float32": 0.40}),
    batch=MappingProxyType({"int4": 0.28, "int8": 0.36, "float32": 0.36}),
    reading=0.50,
    cached=0.50,
    cache_reading=0.10,
    prompt_attention=0.30,
    attention=MappingProxyType({"float32": 0.10}),
    step_seconds=500e-6,
    sequence_seconds=10e-6,
    layer_seconds=200e-6,
    process_bytes=105_000_000,
    measured=False,
    sources=("the onnx backend: derived from the ONNX Runtime rows of docs/performance.md; its attention assumed",),
)


_PORTABLE: Final = replace(
    _NATIVE,
    prompt=MappingProxyType({"int4": 0.14, "int8": 0.09, "bfloat16": 0.30, "float32": 0.50}),
    batch=MappingProxyType({"int4": 0.14, "int8": 0.09, "bfloat16": 0.30, "float32": 0.50}),
    measured=False,
    sources=(
        "the native engine's portable loops: their speed beside AVX2's on one x86 machine that others used too, as a "
        "share of what 128-bit float32 instructions could do there; bfloat16 assumed",
        *_NATIVE.sources[3:],
    ),
)


def has_kernels(target: Target) -> bool:
    """Whether the native engine has kernels of its own for the processor, and not the portable loops alone."""
    return any(name in target.features for name in KERNEL_FEATURES)


def efficiency_of(backend: str, target: Target | None = None) -> Efficiency:
    """What is known of a backend on a target; on a processor with kernels of its own if no target is given."""
    if target is not None and target.kind == "nvidia-gpu":
        return _UNMEASURED_GPU
    if backend == "onnx":
        return _ONNX
    return _NATIVE if target is None or has_kernels(target) else _PORTABLE
