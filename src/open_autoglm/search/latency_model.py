# SPDX-License-Identifier: Apache-2.0
"""How long an answer of any small GLM takes on this machine's engine, from a few random models that were measured.

The time of an answer is a sum: a part for each step of the engine, one for each layer, and one for each weight that is
read. A few shapes measured once tell these parts; every other shape is computed in a moment.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.errors import EngineError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import int8_bytes, kv_numbers_per_token

_ROUNDS: Final = 5
_MEGABYTE: Final = 1e6
_KV_BYTES: Final = 2
"""The native engine keeps keys and values in bfloat16 beside int8 weights."""


@dataclass(frozen=True)
class Workload:
    """The answer that latency is about. prompt_tokens, answer_tokens: of the data's usual example."""

    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Measurement:
    """One shape: seconds of one answer alone, and bytes of the packed weights."""

    config: ModelConfig
    seconds: float
    weight_bytes: int


@dataclass(frozen=True)
class LatencyModel:
    """What a shape costs, fitted to measurements.

    weights: seconds for each feature of `features`. error: the mean relative error on shapes that were left out of the
    fit, one after the other. bytes_per_size: packed bytes for each byte of the int8 file.
    """

    workload: Workload
    weights: tuple[float, ...]
    error: float
    bytes_per_size: float

    @classmethod
    def fit(cls, workload: Workload, measured: Sequence[Measurement]) -> LatencyModel:
        """Fit non-negative costs. Raises EngineError for fewer than four shapes."""
        if len(measured) < 4:
            raise EngineError(f"a model of the engine's speed needs at least four measured shapes, not {len(measured)}")
        rows = np.array([features(m.config, workload) for m in measured])
        seconds = np.array([m.seconds for m in measured])
        errors: list[float] = []
        for left_out in range(len(measured)):
            kept = np.arange(len(measured)) != left_out
            predicted = float(rows[left_out] @ _solve(rows[kept], seconds[kept]))
            errors.append(abs(predicted / seconds[left_out] - 1))
        packed = statistics.median(m.weight_bytes / int8_bytes(m.config) for m in measured)
        return cls(workload, tuple(_solve(rows, seconds)), statistics.fmean(errors), packed)

    def seconds(self, config: ModelConfig) -> float:
        """Of one answer alone."""
        return float(np.dot(features(config, self.workload), self.weights))

    def predict(self, config: ModelConfig) -> dict[str, float]:
        """A value for each of `targets.LIMITS`."""
        seconds, size = self.seconds(config), int8_bytes(config)
        cache = _KV_BYTES * kv_numbers_per_token(config) * config.max_position_embeddings
        return {
            "latency_ms": 1000 * seconds,
            "tokens_per_s": self.workload.answer_tokens / seconds,
            "memory_mb": (size * self.bytes_per_size + cache) / _MEGABYTE,
            "size_mb": size / _MEGABYTE,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "prompt_tokens": self.workload.prompt_tokens,
            "answer_tokens": self.workload.answer_tokens,
            "weights": list(self.weights),
            "error": self.error,
            "bytes_per_size": self.bytes_per_size,
        }


def features(config: ModelConfig, workload: Workload) -> list[float]:
    """What the seconds of an answer are made of: steps, layers in steps, layer weights in steps, output weights in
    steps, and the products of the prompt.
    """
    steps = workload.answer_tokens
    layers = config.num_hidden_layers
    matrices = config.num_decoder_parameters() / 1e6
    output = config.vocab_size * config.hidden_size / 1e6
    return [1.0, steps * layers / 1e3, steps * matrices, steps * output, workload.prompt_tokens * matrices]


def grid_of(configs: Iterable[ModelConfig], count: int) -> list[ModelConfig]:
    """Shapes to measure out of many: spread over depth and size, both ends of each among them.

    Each next one is the one that lies farthest from those that were taken already, by layers, decoder and output
    weights on logarithmic scales.
    """
    listed = list(dict.fromkeys(configs))
    if len(listed) <= count:
        return listed
    places = np.log([[c.num_hidden_layers, c.num_decoder_parameters(), c.vocab_size * c.hidden_size] for c in listed])
    places = (places - places.mean(axis=0)) / np.maximum(places.std(axis=0), 1e-9)
    chosen = [int(np.argmin(places.sum(axis=1)))]
    distance = np.linalg.norm(places - places[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen[-1]], axis=1))
    return [listed[place] for place in chosen]


def measure(config: ModelConfig, workload: Workload, *, threads: int | None = None) -> Measurement:
    """Run a model of this shape with random int8 weights through the native engine, one answer at a time.

    The least of a few rounds is taken, since other work on the machine only adds. Raises EngineError where the native
    engine does not run.
    """
    import torch

    from open_autoglm.engine.backends import load_backend
    from open_autoglm.engine.engine import Engine, complete_all
    from open_autoglm.engine.request import Request, SamplingParams
    from open_autoglm.models.checkpoint import save_model
    from open_autoglm.models.glm import GlmForCausalLM

    model = GlmForCausalLM(config)
    model.initialize(torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix="open-autoglm-") as name:
        save_model(model, Path(name))
        backend: Any = load_backend("native", Path(name), weights="int8", threads=threads)
    total = workload.prompt_tokens + workload.answer_tokens
    engine = Engine(backend, stop_token_ids=(), max_sequences=1, kv_blocks=2 + total // 16, enable_prefix_caching=False)
    params = SamplingParams(max_tokens=workload.answer_tokens, temperature=0.0)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, workload.prompt_tokens)
    best = float("inf")
    try:
        for number in range(_ROUNDS + 1):
            request = Request(f"measured-{number}", tuple(int(token) for token in ids), params)
            started = time.perf_counter()
            complete_all(engine, [request])
            if number:
                best = min(best, time.perf_counter() - started)
    finally:
        engine.close()
    return Measurement(config, best, int(backend.num_weight_bytes))


def _solve(rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Costs of least relative error that are not negative."""
    from scipy.optimize import nnls

    found, _ = nnls(rows / seconds[:, None], np.ones(len(seconds)))
    return found
