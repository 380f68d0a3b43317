# SPDX-License-Identifier: Apache-2.0
"""How long a step of the engine takes on a target: what is read over the bandwidth, what is computed over the rate.

The larger of reading the weights and multiplying with them, then attention, then what a step costs beside. Each limit
is multiplied by the share of it that the engine was measured to reach (`efficiency.py`).
Source: the roofline model, Williams et al. 2009.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import linears, output_format, output_linear
from open_autoglm.planning.efficiency import REFERENCE_RATE_PER_CORE, Efficiency, efficiency_of
from open_autoglm.planning.memory import BLOCK_SIZE, block_bytes
from open_autoglm.planning.setup import Setup
from open_autoglm.targets import Target

PROMPT_TOKENS: Final = 512
DECODE_SEQUENCES: Final = (1, 8)
CONTEXT: Final = 512
"""Tokens of context of each sequence at the speeds of decoding, or half of the context where that is less."""

_CACHE_SHARE: Final = 0.75
"""Of the last cache that weights may fill and still be found there at the next step."""


@dataclass(frozen=True)
class SpeedEstimate:
    """Tokens per second: of a prompt, of one answer alone, of eight together. context: tokens of each of these.

    measured_layers: of a random model that was timed for it (`planning/timing.py`); None for what was computed from the
    target's limits.
    """

    prefill: float
    decode_x1: float
    decode_x8: float
    prompt_tokens: int
    context: int
    measured_layers: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "measured": self.measured_layers is not None}


class Speeds(Protocol):
    """Where a plan has its speeds from."""

    def of(self, config: ModelConfig, setup: Setup, target: Target) -> SpeedEstimate | None:
        """All speeds of a setup; None where nothing is known of them."""
        ...

    def alone(self, config: ModelConfig, setup: Setup, target: Target) -> float | None:
        """Tokens per second of one answer, of a setup that is only compared with another."""
        ...


class LimitedSpeeds:
    """Speeds computed from a target's limits."""

    def of(self, config: ModelConfig, setup: Setup, target: Target) -> SpeedEstimate | None:
        """See `estimate_speed`."""
        return estimate_speed(config, setup, target)

    def alone(self, config: ModelConfig, setup: Setup, target: Target) -> float | None:
        """See `estimate_speed`."""
        found = estimate_speed(config, setup, target)
        return None if found is None else found.decode_x1


def lengths_of(setup: Setup, prompt_tokens: int | None = None, context: int | None = None) -> tuple[int, int]:
    """Tokens of the prompt, and of each sequence that is decoded: 512, or half of the setup's context."""
    half = max(1, setup.context // 2)
    return prompt_tokens or min(PROMPT_TOKENS, half), context or min(CONTEXT, half)


def estimate_speed(
    config: ModelConfig, setup: Setup, target: Target, *, prompt_tokens: int | None = None, context: int | None = None
) -> SpeedEstimate | None:
    """Tokens per second of a model run so; None where the target's bandwidth or rates are not known.

    prompt_tokens, context: 512, or half of the setup's context, if not given.
    """
    if not target.bandwidth or "float32" not in target.rates:
        return None
    prompt, behind = lengths_of(setup, prompt_tokens, context)
    alone, together = (
        count / step_seconds(config, setup, target, sequences=count, tokens=1, context=behind)
        for count in DECODE_SEQUENCES
    )
    return SpeedEstimate(
        prefill=prompt / step_seconds(config, setup, target, sequences=1, tokens=prompt, context=prompt),
        decode_x1=alone,
        decode_x8=together,
        prompt_tokens=prompt,
        context=behind,
    )


def step_seconds(
    config: ModelConfig, setup: Setup, target: Target, *, sequences: int, tokens: int, context: int
) -> float:
    """Seconds of one step that computes `tokens` tokens of each sequence, the last of which sees `context` tokens.

    The target's bandwidth and rates must be known; see `estimate_speed`.
    """
    found = efficiency_of(setup.backend, target)
    rate = target.rates.get(setup.weights, target.rates["float32"])
    share = (found.prompt if tokens > 1 else found.batch).get(setup.weights, found.batch["float32"])
    operations = _operations(config, sequences, tokens)
    products = max(_reading(config, setup, target, found, sequences * tokens), operations / (rate * share))
    per_core = target.rates["float32"] / target.cores
    slowness = max(1.0, REFERENCE_RATE_PER_CORE / per_core) if target.kind == "cpu" else 1.0
    beside = found.step_seconds + sequences * found.sequence_seconds + config.num_hidden_layers * found.layer_seconds
    return products + _attention(config, setup, target, found, sequences, tokens, context) + slowness * beside


def _operations(config: ModelConfig, sequences: int, tokens: int) -> float:
    """Of the matrix products; each sequence has the logits of its last token."""
    layers = sum(linear.used * linear.weights for linear in linears(config))
    return 2.0 * (sequences * tokens * layers + sequences * output_linear(config).weights)


def read_bytes(config: ModelConfig, weights: str, tokens: int) -> float:
    """Bytes of weights that a step of so many tokens reads: each once, and of experts those that some token chose."""
    total = float(output_linear(config).packed_bytes(output_format(config, weights)))
    for linear in linears(config):
        touched = 1.0
        if linear.used < linear.copies:
            touched = 1.0 - (1.0 - linear.used / linear.copies) ** tokens
        total += touched * linear.copies * linear.packed_bytes(weights)
    return total


def _reading(config: ModelConfig, setup: Setup, target: Target, found: Efficiency, tokens: int) -> float:
    assert target.bandwidth
    size = read_bytes(config, setup.weights, tokens)
    share = found.cached if size < _CACHE_SHARE * (target.cache or 0) else found.reading
    return size / (target.bandwidth * share)


def _attention(  # noqa: PLR0917
    config: ModelConfig,
    setup: Setup,
    target: Target,
    found: Efficiency,
    sequences: int,
    tokens: int,
    context: int,
) -> float:
    assert target.bandwidth
    seen = tokens * (context - (tokens - 1) / 2)
    numbers = 2 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    operations = 2.0 * numbers * sequences * seen
    if tokens > 1:
        return operations / (target.rates["float32"] * found.prompt_attention)
    per_token = block_bytes(config, setup.backend, setup.kv_dtype) / BLOCK_SIZE
    reading = sequences * context * per_token / (target.bandwidth * found.cache_reading)
    share = found.attention.get(setup.kv_dtype, found.attention["float32"])
    return max(reading, operations / (target.rates["float32"] * share))
