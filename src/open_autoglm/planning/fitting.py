# SPDX-License-Identifier: Apache-2.0
"""Which sizes of batch and context fit the memory that there is, for one format of weights and cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from open_autoglm.engine.memory import plan_kv_blocks, plan_sequences
from open_autoglm.errors import EngineError
from open_autoglm.models.config import ModelConfig
from open_autoglm.planning.memory import BLOCK_SIZE, block_bytes, estimate_memory
from open_autoglm.planning.setup import Setup
from open_autoglm.targets import Target

_SYSTEM_SHARE: Final = 0.10
_SYSTEM_LEAST: Final = 256 << 20


def usable_memory(target: Target) -> int:
    """Bytes that a model may take: all but a tenth, and at least 256 MiB, for the system."""
    return max(0, target.memory - max(_SYSTEM_LEAST, int(target.memory * _SYSTEM_SHARE)))


def takes(config: ModelConfig, setup: Setup, target: Target) -> int:
    """Bytes of everything, the server included."""
    return estimate_memory(config, setup, target).total


def fit_batch(config: ModelConfig, setup: Setup, target: Target, usable: int, concurrency: int | None) -> Setup | None:
    """The setup with as many sequences as fit, or with just so many if `concurrency` asks for them; None if not.

    Without being asked, the cache takes what the engine would give it by itself: a quarter of the memory that the
    weights leave, or one sequence if that is more.
    """
    one = replace(setup, sequences=concurrency or 1)
    if takes(config, one, target) > usable:
        return None
    if concurrency is not None:
        return one
    estimate = estimate_memory(config, one, target)
    free = usable - estimate.weights - estimate.process - estimate.server
    most = plan_sequences(free_memory=free, vocab_size=config.vocab_size)
    per_sequence = -(-setup.context // BLOCK_SIZE)
    try:
        blocks = plan_kv_blocks(
            free_memory=free,
            bytes_per_block=block_bytes(config, setup.backend, setup.kv_dtype),
            block_size=BLOCK_SIZE,
            max_sequences=most,
            max_positions=setup.context,
        )
    except EngineError:  # not even a block in that share; one sequence was found to fit
        return one
    count = max(1, min(most, blocks // per_sequence))
    while count > 1 and takes(config, replace(one, sequences=count), target) > usable:
        count -= 1
    return replace(one, sequences=count)


def longest_context(config: ModelConfig, setup: Setup, target: Target, usable: int) -> int:
    """Tokens of context, in whole pages, with which the setup's sequences fit; 0 if not even one page does."""
    low, high = 0, config.max_context // BLOCK_SIZE
    while low < high:
        middle = (low + high + 1) // 2
        if takes(config, replace(setup, context=middle * BLOCK_SIZE), target) <= usable:
            low = middle
        else:
            high = middle - 1
    return low * BLOCK_SIZE


def most_sequences(config: ModelConfig, setup: Setup, target: Target, usable: int) -> int:
    """Sequences of the setup's context that fit, fewer than the setup has; 0 if not even one does."""
    low, high = 0, setup.sequences
    while low < high:
        middle = (low + high + 1) // 2
        if takes(config, replace(setup, sequences=middle), target) <= usable:
            low = middle
        else:
            high = middle - 1
    return low
