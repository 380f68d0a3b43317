# SPDX-License-Identifier: Apache-2.0
"""How much memory a model takes while it serves: weights, KV cache, activations, and the process itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from open_autoglm.engine.memory import plan_batch_tokens
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import kv_block_bytes, kv_numbers_per_token, packed_bytes
from open_autoglm.planning.efficiency import SERVER_BYTES, efficiency_of
from open_autoglm.planning.setup import Setup
from open_autoglm.targets import Target

BLOCK_SIZE: Final = 16
"""Tokens of a page of the KV cache."""

_BYTES: Final = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 1}
_COPIES_OF_LOGITS: Final = 2
_OWN_RECORDS: Final = ("int8", "int4")
"""Formats of weights for which activations are rounded to a byte before they are multiplied, on every processor."""

_BFLOAT16_FEATURE: Final = "avx512_bf16"
"""With these instructions activations beside bfloat16 weights are bfloat16 too (`csrc/kernels/avx512_bf16.cpp`)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, all sequences at full context. process: Python, libraries and the engine. server: HTTP around it."""

    weights: int
    kv_cache: int
    activations: int
    process: int
    server: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.activations + self.process + self.server

    def to_dict(self) -> dict[str, int]:
        """JSON-ready."""
        return {**asdict(self), "total": self.total}


def kv_blocks(setup: Setup) -> int:
    """Pages that hold all sequences at full context."""
    return setup.sequences * -(-setup.context // BLOCK_SIZE)


def block_bytes(config: ModelConfig, backend: str, kv_dtype: str) -> int:
    """Bytes of a page of the KV cache. The other backends keep plain numbers, without the native engine's padding."""
    if backend == "native":
        return kv_block_bytes(config, kv_dtype, BLOCK_SIZE)
    return BLOCK_SIZE * kv_numbers_per_token(config) * _BYTES[kv_dtype]


def weight_bytes(config: ModelConfig, backend: str, weights: str) -> int:
    """Bytes of the weights in memory. torch keeps 4 bits packed in groups beside 8-bit tables, as the packed form."""
    if backend != "native" and weights in ("float32", "bfloat16"):
        return config.num_parameters() * _BYTES[weights]
    return packed_bytes(config, weights)


def estimate_memory(
    config: ModelConfig, setup: Setup, target: Target | None = None, *, server: bool = True
) -> MemoryEstimate:
    """What a process takes that serves a model so.

    target: a processor if not given. server: whether the HTTP server is counted, which is a process of its own.
    """
    blocks = kv_blocks(setup)
    return MemoryEstimate(
        weights=setup.weight_bytes or weight_bytes(config, setup.backend, setup.weights),
        kv_cache=blocks * block_bytes(config, setup.backend, setup.kv_dtype),
        activations=_activation_bytes(config, setup, blocks, target),
        process=efficiency_of(setup.backend, target).process_bytes,
        server=SERVER_BYTES if server else 0,
    )


def _activation_bytes(config: ModelConfig, setup: Setup, blocks: int, target: Target | None) -> int:
    """What one step of as many tokens as the engine computes keeps at a time (`csrc/model.cpp`), and its logits."""
    rows = plan_batch_tokens(kv_blocks=blocks, block_size=BLOCK_SIZE)
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    widest = max(config.intermediate_size, config.num_shared_experts * config.moe_intermediate_size)
    pairs = rows * (config.num_experts_per_tok + 1) if config.is_mixture else 0
    inner = max(rows * widest, pairs * max(config.moe_intermediate_size, widest if config.num_shared_experts else 0))
    floats = rows * (2 * config.hidden_size + 2 * query + 2 * key) + inner
    cell = _BYTES[setup.weights] if setup.weights in _OWN_RECORDS else 4
    if setup.weights == "bfloat16" and target is not None and _BFLOAT16_FEATURE in target.features:
        cell = 2
    records = cell * (rows * max(config.hidden_size, query) + inner)
    logits = _COPIES_OF_LOGITS * 4 * setup.sequences * config.vocab_size
    return 4 * floats + records + logits
