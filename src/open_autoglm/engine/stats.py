# SPDX-License-Identifier: Apache-2.0
"""Where an engine stands, as plain values that a server can show and send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ModelState = Literal["not loaded", "loading", "ready", "restarting", "stopping", "failed"]
"""`not loaded`: the first call loads it. `restarting`: its engine died and is started again. `failed`: it is down."""

PROBE_SECONDS: Final = 5.0
"""An engine without work computes a token this often, to see that it still can."""
READY_SECONDS: Final = 15.0
"""A model is ready while its last successful step is no older."""


@dataclass(frozen=True)
class EngineStats:
    """Where the engine stands. Blocks are KV blocks; counts run from the engine's start.

    free_blocks: those that can be allocated; `cached_blocks` of them hold tokens that a prompt may begin with.
    num_cached_tokens: tokens that were found in the cache instead of being computed.
    num_scheduled: sequences of all steps together, so that the mean batch is this by `num_steps`.
    """

    num_waiting: int
    num_running: int
    free_blocks: int
    cached_blocks: int
    total_blocks: int
    num_steps: int
    num_preemptions: int
    num_cached_tokens: int
    num_scheduled: int = 0
