# SPDX-License-Identifier: Apache-2.0
"""Backends: what computes the logits of a batch. One small interface; the libraries load when one is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from open_autoglm.engine.batch import Batch
from open_autoglm.errors import EngineError

BACKENDS: Final = ("torch",)


class Backend(Protocol):
    """A model with a paged KV cache. One thread at a time calls it."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits; may exceed the tokenizer's vocabulary."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest context, in tokens."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What the model's configuration names as ends of an answer."""
        ...

    def bytes_per_block(self, block_size: int) -> int:
        """Memory of one KV block over all layers."""
        ...

    def free_memory(self) -> int:
        """Bytes that the KV cache could take, where it would lie."""
        ...

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make the KV cache; called once, before the first step."""
        ...

    def step(self, batch: Batch) -> np.ndarray:
        """Compute a batch and store its keys and values. Returns float32[num_outputs, vocab_size], writable."""
        ...

    def close(self) -> None:
        """Let the memory go."""
        ...


def load_backend(
    name: str, folder: Path, *, weights: str = "float32", dtype: str = "float32", threads: int | None = None
) -> Backend:
    """Load the model in `folder` into the backend called `name`.

    weights: `float32`, `int8` or `int4`. dtype: of the computation, `float32` or `bfloat16`.
    threads: processor threads; the library's own choice when not given.
    Raises EngineError for an unknown backend or one whose library is missing, CheckpointError for the model.
    """
    torch_backend = _import_backend(name)
    return torch_backend.load(folder, weights=weights, dtype=dtype, threads=threads)


def wrap_model(model: Any) -> Backend:
    """The torch backend over a `GlmForCausalLM` that is already in memory."""
    return _import_backend("torch").TorchBackend(model)


def _import_backend(name: str) -> Any:
    if name not in BACKENDS:
        raise EngineError(f"unknown engine backend '{name}'; choose one of: {', '.join(BACKENDS)}")
    try:
        from open_autoglm.engine.backends import torch_backend
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise EngineError(
            "the torch backend needs PyTorch, which is not installed; run: pip install 'open-autoglm[build]'"
        ) from None
    return torch_backend
