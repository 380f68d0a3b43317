# SPDX-License-Identifier: Apache-2.0
"""Formats of weights and of the KV cache that an engine has on a target, the preferred first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from open_autoglm.planning.model_shape import PlannedModel
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import Speeds
from open_autoglm.targets import FORMATS, Target

READING_SPEED: Final = 6.0
"""Tokens per second that people read at: 238 words a minute (Brysbaert 2019) at a token and a half a word."""

_WORTH: Final = 1.3
"""How many times as fast 4 bits must be for their rounding to be taken for speed alone."""


@dataclass(frozen=True)
class FormatOrder:
    """formats: in the order in which they are tried. reason: why the first is first. impossible: format -> why."""

    formats: tuple[str, ...]
    reason: str
    impossible: dict[str, str]


def computed_formats(backend: str, target: Target) -> tuple[str, ...]:
    """The formats in which a backend computes a model on a target."""
    if target.kind == "nvidia-gpu":
        return ("float32", "bfloat16")
    return tuple(name for name in FORMATS if backend == "native" or name != "bfloat16")


def order_formats(model: PlannedModel, target: Target, setup: Setup, speeds: Speeds) -> FormatOrder:
    """The formats of a model on a target in the order in which they are tried.

    setup: whose weights are set one after the other, for the speeds that decide between 8 and 4 bits. speeds: where
    these are from.
    """
    if model.stored_bits is not None:
        stored = f"int{model.stored_bits}"
        others = {name: f"the checkpoint was rounded to {stored} already" for name in FORMATS if name != stored}
        return FormatOrder((stored,), f"the checkpoint holds its layers in {model.stored_bits} bits", others)
    computed = computed_formats(setup.backend, target)
    if target.kind == "nvidia-gpu":
        why = "the torch backend computes rounded weights on the processor only, not on the GPU"
        reason = "half the bytes of float32, and the GPU multiplies it many times as fast"
        return FormatOrder(("bfloat16", "float32"), reason, {"int8": why, "int4": why})
    if model.default is not None:
        # A bundle has bfloat16 under no name; float32 weights of it can still be computed so.
        rest = sorted((name for name in model.losses if name != model.default), key=lambda name: model.losses[name])
        others = [name for name in ("int8", "bfloat16", "float32", "int4") if name not in (model.default, *rest)]
        names = tuple(name for name in (model.default, *rest, *others) if name in computed)
        return FormatOrder(names, "what the bundle's own measurement of its metric chose", _without(computed, setup))
    return _by_speed(model, target, setup, computed, speeds)


def _without(computed: tuple[str, ...], setup: Setup) -> dict[str, str]:
    return {name: f"the {setup.backend} backend has no {name} weights" for name in FORMATS if name not in computed}


def _by_speed(
    model: PlannedModel, target: Target, setup: Setup, computed: tuple[str, ...], speeds: Speeds
) -> FormatOrder:
    rest = tuple(name for name in ("bfloat16", "float32") if name in computed)
    eight = speeds.alone(model.config, replace(setup, weights="int8"), target)
    four = None
    if eight is not None and eight < READING_SPEED:
        four = speeds.alone(model.config, replace(setup, weights="int4"), target)
    if eight is None or four is None or four < _WORTH * eight:
        return FormatOrder(
            ("int8", "int4", *rest),
            "a quarter of float32's bytes at next to no loss (docs/performance.md), and the engine computes in it",
            _without(computed, setup),
        )
    reason = f"int8 gives {eight:.1f} tokens/s, slower than people read ({READING_SPEED:g}), and 4 bits {four:.1f}"
    return FormatOrder(("int4", "int8", *rest), reason, _without(computed, setup))


def cache_types(backend: str, weights: str) -> tuple[str, ...]:
    """Types of the KV cache that a backend has beside such weights, its own choice first."""
    if backend == "native":
        return ("float32", "bfloat16", "int8") if weights == "float32" else ("bfloat16", "int8")
    if backend == "torch":
        return ("bfloat16",) if weights == "bfloat16" else ("float32", "bfloat16")
    return ("float32",)
