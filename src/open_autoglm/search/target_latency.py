# SPDX-License-Identifier: Apache-2.0
"""How long an answer of any small GLM takes on a device that is not here: computed from the device's figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import int8_bytes
from open_autoglm.planning.backend import advise_backend
from open_autoglm.planning.formats import cache_types
from open_autoglm.planning.memory import BLOCK_SIZE, block_bytes, weight_bytes
from open_autoglm.planning.setup import Setup
from open_autoglm.planning.speed import step_seconds
from open_autoglm.search.latency_model import Workload
from open_autoglm.targets import Target

_MEGABYTE: Final = 1e6


@dataclass(frozen=True)
class TargetLatency:
    """What a shape costs on a target, by `planning`'s estimates; the twin of `LatencyModel`, which measures."""

    workload: Workload
    target: Target

    def seconds(self, config: ModelConfig) -> float:
        """Of one answer alone."""
        setup, work = self._setup(config), self.workload
        prompt = step_seconds(
            config, setup, self.target, sequences=1, tokens=work.prompt_tokens, context=work.prompt_tokens
        )
        middle = work.prompt_tokens + work.answer_tokens // 2
        return prompt + work.answer_tokens * step_seconds(
            config, setup, self.target, sequences=1, tokens=1, context=middle
        )

    def predict(self, config: ModelConfig) -> dict[str, float]:
        """A value for each of `targets.LIMITS`."""
        setup, seconds = self._setup(config), self.seconds(config)
        pages = -(-config.max_position_embeddings // BLOCK_SIZE)
        cache = pages * block_bytes(config, setup.backend, setup.kv_dtype)
        return {
            "latency_ms": 1000 * seconds,
            "tokens_per_s": self.workload.answer_tokens / seconds,
            "memory_mb": (weight_bytes(config, setup.backend, setup.weights) + cache) / _MEGABYTE,
            "size_mb": int8_bytes(config) / _MEGABYTE,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "prompt_tokens": self.workload.prompt_tokens,
            "answer_tokens": self.workload.answer_tokens,
            "target": self.target.name,
            "estimated": True,
        }

    def _setup(self, config: ModelConfig) -> Setup:
        backend = advise_backend(self.target).name
        weights = "bfloat16" if self.target.kind == "nvidia-gpu" else "int8"
        kv_dtype = cache_types(backend, weights)[0]
        return Setup(backend, weights, kv_dtype, self.target.cores, 1, config.max_position_embeddings)
