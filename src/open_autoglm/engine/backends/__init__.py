# SPDX-License-Identifier: Apache-2.0
"""Backends: what computes the logits of a batch. One small interface; the libraries load when one is chosen."""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from open_autoglm.engine.batch import Batch
from open_autoglm.engine.options import BACKENDS
from open_autoglm.errors import EngineError, OpenAutoGLMError
from open_autoglm.plugins.registry import PluginRegistry

WEIGHTS: Final = ("float32", "int8", "int4", "int8-dynamic")
_BY_TORCH: Final = "int8-dynamic"
"""Weights that only the torch backend computes."""
DTYPES: Final = ("float32", "bfloat16")
KV_DTYPES: Final = ("auto", "float32", "bfloat16", "int8")

_NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/version")
_EXTENSION: Final = "open_autoglm.engine._native"
_INSTALL: Final = {
    "torch": ("PyTorch", "open-autoglm[build]"),
    "onnxruntime": ("ONNX Runtime", "open-autoglm[onnx]"),
    "onnx": ("the onnx package", "open-autoglm[onnx]"),
}


class BackendWarning(UserWarning):
    """The backend that is used is not the one that would be best here."""


class Backend(Protocol):
    """A model with a paged KV cache. One thread at a time calls it."""

    @property
    def name(self) -> str:
        """Which of `BACKENDS` this is."""
        ...

    @property
    def description(self) -> str:
        """In a few words, for people: what computes, in which number formats."""
        ...

    @property
    def vocab_size(self) -> int:
        """Columns of the logits; may exceed the tokenizer's vocabulary."""
        ...

    @property
    def hidden_size(self) -> int:
        """Numbers of one hidden state."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest context, in tokens."""
        ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What the model's configuration names as ends of an answer."""
        ...

    @property
    def position_independent_keys(self) -> bool:
        """Whether the key of a token depends only on the tokens up to it, so that sequences may share blocks.

        False where it depends on the length of the whole sequence too, as with dynamic NTK scaling of RoPE.
        """
        ...

    def bytes_per_block(self, block_size: int) -> int:
        """Memory of one KV block over all layers."""
        ...

    def free_memory(self) -> int:
        """Bytes that the KV cache could take, where it would lie."""
        ...

    def allocate(self, num_blocks: int, block_size: int) -> None:
        """Make the KV cache; called once, before the first step.

        Raises EngineError for a block size that the backend does not take, or when the memory is refused.
        """
        ...

    def step(self, batch: Batch) -> np.ndarray:
        """Compute a batch and store its keys and values. Returns float32[num_outputs, vocab_size], writable.

        Writes the hidden states that the batch asks for into `batch.states`; no logits are computed for their rows.
        The result is read until the next call, which may reuse its memory. Runs without the interpreter's lock
        where it can, because the engine computes guide masks beside it.
        """
        ...

    def close(self) -> None:
        """Let the memory go."""
        ...


@dataclass(frozen=True)
class BackendChoice:
    """A backend, and why it is that one.

    detail: what it runs on. passed_over: why those that `auto` would rather have taken cannot run; empty else.
    """

    name: str
    detail: str
    passed_over: str = ""


def availability(name: str) -> tuple[bool, str]:
    """Whether the backend called `name` runs on this machine, and on what, or else why not.

    Loads the backend's library, but no model. Raises EngineError for an unknown name.
    """
    try:
        return _import_backend(name).availability()
    except EngineError as error:
        if name not in BACKENDS:
            raise
        return False, str(error)


def choose_backend(name: str = "auto", *, weights: str = "float32") -> BackendChoice:
    """The backend that `name` means on this machine for a model with these weights.

    `auto` takes torch where an NVIDIA GPU computes these weights, else the first of `BACKENDS` that runs here.
    Raises EngineError for an unknown name, and when no backend runs here.
    """
    if name != "auto":
        if name not in BACKENDS:
            raise _unknown(name)
        return BackendChoice(name, "as asked for")
    if weights == _BY_TORCH:
        return BackendChoice("torch", f"it alone computes {weights} weights")
    # The driver's file is looked at first, because loading PyTorch only to learn that there is no GPU takes seconds.
    if weights == "float32" and _NVIDIA_DRIVER.is_file() and availability("torch")[0]:
        device = _import_backend("torch").cuda_device()
        if device is not None:
            return BackendChoice("torch", f"{device} computes {weights} weights")
    passed_over: list[str] = []
    for candidate in BACKENDS:
        is_available, detail = availability(candidate)
        if is_available:
            return BackendChoice(candidate, detail, "; ".join(passed_over))
        passed_over.append(f"the {candidate} backend is not available: {detail}")
    raise EngineError(f"no engine backend runs here: {'; '.join(passed_over)}")


def load_backend(
    name: str,
    folder: Path,
    *,
    weights: str = "float32",
    dtype: str = "float32",
    kv_dtype: str = "auto",
    threads: int | None = None,
) -> Backend:
    """Load the model in `folder` into the backend called `name`, ours or a plugin, or the one that `auto` means here.

    weights: `float32`, `int8`, `int4`, or `int8-dynamic` on torch. dtype: of the computation, `float32` or `bfloat16`.
    kv_dtype: of the KV cache, `float32`, `bfloat16` or `int8`; the backend's own choice with `auto`.
    threads: processor threads; the library's own choice when not given.
    Warns, once in a process, when `auto` means another backend than the native one because that cannot run.
    Raises EngineError for an unknown backend or setting, or one whose library is missing, CheckpointError for the
    model.
    """
    for what, value, known in (
        ("weights", weights, WEIGHTS),
        ("dtype", dtype, DTYPES),
        ("kv_dtype", kv_dtype, KV_DTYPES),
    ):
        if value not in known:
            raise EngineError(f"unknown {what} '{value}'; choose one of: {', '.join(known)}")
    if threads is not None and threads < 1:
        raise EngineError(f"threads must be at least 1, not {threads}")
    if plugin_digest(name) is not None:
        return _load_plugin(
            name, folder, {"weights": weights, "dtype": dtype, "kv_dtype": kv_dtype, "threads": threads}
        )
    choice = choose_backend(name, weights=weights)
    if choice.passed_over:
        _warn_once(f"{choice.passed_over}; {choice.name} is used instead")
    if weights == _BY_TORCH and choice.name != "torch":
        raise EngineError(
            f"the {choice.name} backend has no {weights} weights; use --backend torch, or --quantize int8"
        )
    module = _import_backend(choice.name)
    if choice.name == "native":
        is_available, detail = module.availability()
        if not is_available:
            raise EngineError(f"the native backend is not available: {detail}; use --backend auto")
    return module.load(folder, weights=weights, dtype=dtype, kv_dtype=kv_dtype, threads=threads)


def plugin_digest(name: str) -> str | None:
    """Of the content of the plugin that is a backend of this name; None for ours, which come first, and no plugin."""
    if name in ("auto", *BACKENDS):
        return None
    found = PluginRegistry().enabled("backend").get(name)
    return None if found is None else found.digest


def wrap_model(model: Any) -> Backend:
    """The torch backend over a `GlmForCausalLM` that is already in memory."""
    return _import_backend("torch").TorchBackend(model)


def _load_plugin(name: str, folder: Path, options: dict[str, Any]) -> Backend:
    plugin = PluginRegistry().make("backend", name)
    try:
        backend = plugin.load(folder, options)
    except OpenAutoGLMError:
        raise
    except Exception as error:
        raise EngineError(
            f"the backend '{name}', a plugin, cannot load {folder}: {type(error).__name__}: {error}"
        ) from error
    if missing := [one for one in ("allocate", "step", "vocab_size", "max_positions") if not hasattr(backend, one)]:
        raise EngineError(f"the backend '{name}', a plugin, gave a {type(backend).__name__} without '{missing[0]}'")
    return backend


def _unknown(name: str) -> EngineError:
    known = ("auto", *BACKENDS, *PluginRegistry().enabled("backend"))
    return EngineError(f"unknown engine backend '{name}'; choose one of: {', '.join(known)}")


@functools.cache
def _warn_once(message: str) -> None:
    """A warning that is not repeated; the registry of `warnings` forgets when a library adds a filter."""
    warnings.warn(message, BackendWarning, stacklevel=1)


def _import_backend(name: str) -> Any:
    """The module of a backend.

    It offers `availability() -> tuple[bool, str]` and `load(folder, *, weights, dtype, kv_dtype, threads) -> Backend`.
    Raises EngineError when its library is missing or broken.
    """
    if name not in BACKENDS:
        raise _unknown(name)
    module = f"{__name__}.{name}_backend"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name == module:
            raise EngineError(f"this version of Open-AutoGLM comes without the {name} backend") from None
        if missing.name == _EXTENSION:
            raise EngineError(
                "the package was installed without its compiled engine, because no C++ compiler was found; install one "
                "(Debian: apt install g++) and run: pip install --force-reinstall --no-cache-dir open-autoglm"
            ) from None
        if missing.name not in _INSTALL:
            raise
        library, package = _INSTALL[missing.name]
        raise EngineError(
            f"the {name} backend needs {library}, which is not installed; run: pip install '{package}'"
        ) from None
    except (ImportError, OSError) as error:
        raise EngineError(f"the {name} backend's library does not load: {error}") from None
