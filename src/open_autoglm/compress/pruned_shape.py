# SPDX-License-Identifier: Apache-2.0
"""What a pruned model is to look like: how many layers, heads and channels stay, the same in every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.models.config import ModelConfig

_STEP: Final = 32
"""Channels are removed in such numbers, so that 4-bit groups and the engines' kernels still fit."""


@dataclass(frozen=True)
class PruningSettings:
    """A pruning, as asked for: what stays. None leaves a number to `ratio`, or as it is.

    layers: decoder layers. heads: query heads of a layer; whole groups that share a key head where the number allows
    it, else as many of each group. channels: of a feed-forward block. ratio: the share of the decoder's parameters to
    remove from heads and channels. repair: let what stays make up, by least squares, for what goes.
    """

    layers: int | None = None
    heads: int | None = None
    channels: int | None = None
    ratio: float | None = None
    repair: bool = True


def parse_share(text: str) -> float:
    """`30%` or `0.3` as a number. Raises ConfigurationError for anything else."""
    said = text.strip()
    try:
        return float(said.removesuffix("%")) / (100 if said.endswith("%") else 1)
    except ValueError:
        raise ConfigurationError(f"--ratio '{text}' is not a share; write it like 30% or 0.3") from None


def pruned_config(config: ModelConfig, settings: PruningSettings) -> ModelConfig:
    """The architecture that stays of one.

    Raises ConfigurationError for numbers that do not fit it or change nothing, CheckpointError for a mixture of
    experts.
    """
    if config.is_mixture:
        raise CheckpointError(f"{config.architecture} has experts, whose pruning is not supported; quantise it instead")
    layers = _within("--layers", settings.layers, config.num_hidden_layers)
    heads = _within("--heads", settings.heads, config.num_attention_heads)
    channels = _within("--channels", settings.channels, config.intermediate_size)
    if settings.ratio is not None:
        if not 0 < settings.ratio < 1:
            raise ConfigurationError(f"--ratio must be between 0% and 100%, not {settings.ratio:.0%}")
        if settings.channels is not None:
            raise ConfigurationError("--ratio decides how many channels stay; give either it or --channels")
        if settings.heads is None:
            heads = _fewest_heads(config, (1 - settings.ratio) * config.num_attention_heads)
    found = _with_heads(replace(config, num_hidden_layers=layers, intermediate_size=channels), heads)
    if settings.ratio is not None:
        found = _with_fewer_channels(found, (1 - settings.ratio) * config.num_decoder_parameters())
    if found == config:
        raise ConfigurationError("nothing is to be removed; give --ratio, --layers, --heads or --channels")
    return found


def _within(option: str, wanted: int | None, present: int) -> int:
    if wanted is None:
        return present
    if not 1 <= wanted <= present:
        raise ConfigurationError(f"{option} says how many stay, so it must be between 1 and {present}, not {wanted}")
    return wanted


def _with_heads(config: ModelConfig, heads: int) -> ModelConfig:
    key_heads = config.num_key_value_heads
    shared = config.num_attention_heads // key_heads
    if heads % shared == 0:
        return replace(config, num_attention_heads=heads, num_key_value_heads=heads // shared)
    if heads % key_heads == 0:
        return replace(config, num_attention_heads=heads)
    raise ConfigurationError(
        f"--heads {heads} cannot be: {shared} query heads share a key head, so it must be a multiple of {shared} "
        f"(whole groups) or of {key_heads} (as many of each group)"
    )


def _fewest_heads(config: ModelConfig, least: float) -> int:
    """The fewest heads that a layer can have, but no less than `least`."""
    key_heads = config.num_key_value_heads
    shared = config.num_attention_heads // key_heads
    usable = range(1, config.num_attention_heads + 1)
    return next(n for n in usable if n >= least - 1e-9 and (n % shared == 0 or n % key_heads == 0))


def _with_fewer_channels(config: ModelConfig, most_parameters: float) -> ModelConfig:
    """As many channels as fit into the parameters."""
    step = _STEP if config.intermediate_size % _STEP == 0 else 1
    for channels in range(config.intermediate_size, 0, -step):
        found = replace(config, intermediate_size=channels)
        if found.num_decoder_parameters() <= most_parameters:
            return found
    raise ConfigurationError("--ratio cannot be reached by heads and channels alone; give --layers too")
