# SPDX-License-Identifier: Apache-2.0
"""How large a random model must be that stands in for a whole one while steps are timed, and how large it may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import linears, output_format, output_linear
from open_autoglm.planning.memory import BLOCK_SIZE
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import DECODE_SEQUENCES, read_bytes, step_seconds
from open_autoglm.targets import Target

MEASURED_STEPS: Final = 16
"""Steps of decoding in a row, whose median counts."""

BURST_SECONDS: Final = 0.1
FEWEST_STEPS: Final = 3
"""Fewer steps than `MEASURED_STEPS`, but no fewer than this, are made where they take longer than `BURST_SECONDS`."""

REPETITIONS: Final = 3
"""Of these after each prompt. The best counts, as other programs only take away."""

_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
_MADE_PER_SECOND: Final = 8e8
"""Random weights that are packed in a second, as two cores of a Zen 4 do."""

_LEAST_CACHE: Final = 16 << 20
_CACHES: Final = 16
"""So many times the last cache's size is taken by experts of their own. Which comes next is left to chance, so that one
in 16 is found in the cache at most."""

_BEYOND: Final = 2
"""So many times the last cache's size must be read per step by the smaller of two stand-ins of a model that does not
fit that cache. Layers are read in turns: a cache of half their size holds none that is wanted next."""


@dataclass(frozen=True)
class StandIn:
    """layers: how many the timed models have, ascending: those of the model itself, or two numbers less than that.

    expert_bytes: that experts take before they take turns. num_bytes: of weights in the larger one.
    """

    layers: tuple[int, ...]
    expert_bytes: int
    num_bytes: int


def choose_stand_in(
    config: ModelConfig, setup: Setup, target: Target, *, prompt: int, context: int, seconds: float, together: bool
) -> StandIn:
    """The model itself where timing it once takes less than `seconds` by the target's limits; else two shallower ones.

    A model's layers are alike, so what one costs is the difference between the two over the layers between them. The
    last one computes less of a prompt, and leading ones of a mixture have no experts: both stand-ins have these.
    prompt, context: tokens. together: whether eight sequences are timed, each with its own prompt.
    """
    layers, expert_bytes = config.num_hidden_layers, _CACHES * max(target.cache or 0, _LEAST_CACHE)

    def of_layers(count: int) -> ModelConfig:
        return replace(config, num_hidden_layers=count)

    def needs(count: int) -> float:
        return _timing_seconds(of_layers(count), setup, target, prompt, context, together=together)

    def makes(count: int) -> float:
        return stand_in_bytes(of_layers(count), setup.weights, expert_bytes) / _BYTES[setup.weights] / _MADE_PER_SECOND

    # The fewest of which the difference is one whole layer of the common kind.
    least = 1 + min(config.first_k_dense_replace if config.is_mixture else 0, layers)
    if layers <= least + 1 or needs(layers) + makes(layers) <= seconds:
        return StandIn((layers,), expert_bytes, stand_in_bytes(config, setup.weights, expert_bytes))
    larger = layers - 1
    while larger > least + 1 and needs(larger) + needs(least) + makes(larger) > seconds:
        larger -= 1
    # As far apart as can be: what is wrong with either time is multiplied by the layers left over those between them.
    smaller = least
    beyond = _BEYOND * (target.cache or 0)
    if read_bytes(config, setup.weights, 1) > beyond:
        while smaller < larger - 1 and read_bytes(of_layers(smaller), setup.weights, 1) < beyond:
            smaller += 1
        while larger < layers - 1 and read_bytes(of_layers(smaller), setup.weights, 1) < beyond:
            smaller, larger = smaller + 1, larger + 1
    size = stand_in_bytes(of_layers(larger), setup.weights, expert_bytes)
    return StandIn((smaller, larger), expert_bytes, size)


def stand_in_bytes(config: ModelConfig, weights: str, expert_bytes: int) -> int:
    """Bytes of a random model's weights; its embedding table is hardly touched."""
    total = output_linear(config).packed_bytes(output_format(config, weights))
    routed = single = 0
    for linear in linears(config):
        size = linear.copies * linear.packed_bytes(weights)
        if linear.used < linear.copies:
            routed, single = routed + size, single + linear.packed_bytes(weights)
        else:
            total += size
    return total + min(routed, max(expert_bytes, config.num_experts_per_tok * single) + single)


def _timing_seconds(
    config: ModelConfig, setup: Setup, target: Target, prompt: int, context: int, *, together: bool
) -> float:
    """What a round of `planning.timing` takes, by the limits."""

    # The last layer computes next to nothing of a prompt but its keys and values.
    inner = replace(config, num_hidden_layers=max(1, config.num_hidden_layers - 1))

    def step(sequences: int, tokens: int, seen: int) -> float:
        model = inner if tokens > 1 else config
        return step_seconds(model, setup, target, sequences=sequences, tokens=tokens, context=seen)

    total = 0.0
    for sequences in DECODE_SEQUENCES if together else DECODE_SEQUENCES[:1]:
        once = step(sequences, 1, context)
        steps = min(MEASURED_STEPS, max(FEWEST_STEPS, BURST_SECONDS / once))
        total += step(1, sequences * -(-context // BLOCK_SIZE), 1) + REPETITIONS * steps * once
    return total + (step(1, prompt, prompt) if together else 0.0)
