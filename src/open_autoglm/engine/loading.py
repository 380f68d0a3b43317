# SPDX-License-Identifier: Apache-2.0
"""Finding and opening what the engine runs: a bundle, a GLM checkpoint folder, or the name of a run."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.huggingface import read_tokenizer
from open_autoglm.bundle.keys import read_verifying_key
from open_autoglm.chat.detection import BUILT_FORMAT, built_format, detect_format
from open_autoglm.chat.format import ChatFormat
from open_autoglm.chat.tokenizer_files import has_tokenizer, load_tokenizer
from open_autoglm.engine.backends import Backend, load_backend, plugin_digest, wrap_model
from open_autoglm.engine.fingerprint import fingerprint
from open_autoglm.engine.model_paths import find_model
from open_autoglm.errors import ConfigurationError, StorageError, UnsignedBundleError
from open_autoglm.storage import read_json
from open_autoglm.task import Task

QUANTIZATIONS: Final = ("int8", "int4", "int8-dynamic")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    name: for people. tokenizer: none for a checkpoint that has only weights. is_bundle: built by us, so that its
    answers begin as ours do. stop_token_ids: what ends an answer. chat_format: how conversations are laid out.
    digest: of the files and of how they are computed.
    """

    name: str
    backend: Backend
    tokenizer: Tokenizer | None
    stop_token_ids: tuple[int, ...]
    task: Task | None
    is_bundle: bool
    chat_format: ChatFormat = BUILT_FORMAT
    digest: str = field(default_factory=lambda: secrets.token_hex(32))


def open_model(
    model: str | Path,
    *,
    backend: str = "auto",
    quantize: str | None = None,
    dtype: str | None = None,
    kv_cache_dtype: str = "auto",
    threads: int | None = None,
    require_signature: str | Path | None = None,
) -> LoadedModel:
    """Open a bundle, verified, or a checkpoint in the Hugging Face layout.

    quantize: `int8`, `int4`, or `int8-dynamic` on the torch backend. dtype: `float32` or `bfloat16` weights and
    computation. With neither, a bundle runs with the weights that it names as its default, and a checkpoint in
    float32. kv_cache_dtype: of the KV cache, `auto`, `float32`, `bfloat16` or `int8`. backend: `auto`, `native`,
    `torch`, `onnx` or a plugin.
    require_signature: the file of a public key; only a bundle that its owner signed is opened.
    Raises BundleError, also for a missing or wrong signature, CheckpointError, EngineError or ConfigurationError.
    """
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise ConfigurationError(f"unknown quantization '{quantize}'; choose one of: {', '.join(QUANTIZATIONS)}")
    key = None if require_signature is None else read_verifying_key(Path(require_signature))
    folder = find_model(model)
    task, is_bundle, weights, name = None, False, quantize or "float32", folder.resolve().name
    if (folder / "bundle.json").is_file() or not (folder / "config.json").is_file():
        bundle = open_bundle(folder, key=key)
        task, is_bundle, name = bundle.task, True, bundle.manifest.name
        if quantize is None and dtype is None:
            weights = bundle.manifest.default_weights
    elif key is not None:
        raise UnsignedBundleError(f"{folder} is a checkpoint, not a bundle, so nobody can have signed it as one")
    tokenizer = read_tokenizer(folder) if is_bundle else load_tokenizer(folder) if has_tokenizer(folder) else None
    loaded = load_backend(
        backend, folder, weights=weights, dtype=dtype or "float32", kv_dtype=kv_cache_dtype, threads=threads
    )
    chat_format = built_format(task) if is_bundle else detect_format(folder, tokenizer)
    stops = _stop_token_ids(folder, loaded, tokenizer, chat_format)
    computed_by = plugin_digest(backend) or loaded.name
    digest = fingerprint(folder, computed_by, weights, dtype, kv_cache_dtype)
    return LoadedModel(name, loaded, tokenizer, stops, task, is_bundle, chat_format, digest)


def wrap(
    model: Any, tokenizer: Tokenizer, task: Task | None, name: str, chat_format: ChatFormat | None = None
) -> LoadedModel:
    """A `GlmForCausalLM` in memory, or a backend that holds a model; in our own chat format if none is given."""
    backend: Backend = model if hasattr(model, "allocate") else wrap_model(model)
    speaks = chat_format or built_format(task)
    stops = tuple(dict.fromkeys((*speaks.stop_token_ids(tokenizer), *backend.stop_token_ids)))
    return LoadedModel(name, backend, tokenizer, stops, task, is_bundle=chat_format is None, chat_format=speaks)


def _stop_token_ids(
    folder: Path, backend: Backend, tokenizer: Tokenizer | None, chat_format: ChatFormat
) -> tuple[int, ...]:
    """`generation_config.json` first, then `config.json`, then the chat format's own."""
    try:
        named = read_json(folder / "generation_config.json").get("eos_token_id")
    except (StorageError, AttributeError):
        named = None
    if isinstance(named, int):
        named = [named]
    if isinstance(named, list) and named and all(isinstance(token_id, int) for token_id in named):
        return tuple(named)
    if backend.stop_token_ids:
        return backend.stop_token_ids
    return chat_format.stop_token_ids(tokenizer) if tokenizer is not None else ()
