# SPDX-License-Identifier: Apache-2.0
"""The files of a checkpoint that another was made into: weights in files of bounded size, and what lies around them."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.models.model_folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from open_autoglm.models.tensor_writing import StoredTensor, as_float_type, write_safetensors
from open_autoglm.models.weights import DenseWeight, WeightReader
from open_autoglm.storage import explained, write_json

_SHARD_BYTES: Final = 4 << 30
_COMPANIONS: Final = (".json", ".jinja", ".txt", ".model")
_COMPANION_LIMIT: Final = 256 << 20
_NEVER_COPIED: Final = (CONFIG_FILE, INDEX_FILE, "bundle.json")


def write_shards(tensors: Mapping[str, StoredTensor], out: Path) -> int:
    """Write weights into files of at most 4 GB, with an index if there are several. Returns their bytes.

    Raises StorageError when the disk refuses.
    """
    shards: list[dict[str, StoredTensor]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(item.values.nbytes for item in shards[-1].values()) + tensor.values.nbytes > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = tensor
    total = sum(tensor.values.nbytes for tensor in tensors.values())
    if len(shards) == 1:
        write_safetensors(tensors, out / WEIGHTS_FILE, {})
        return total
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(shard, out / name, {})
        where |= dict.fromkeys(shard, name)
    write_json(out / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
    return total


def copy_companions(model: Path, out: Path, *, without: Collection[str] = ()) -> None:
    """Copy the tokenizer, the template and what else is said about a model. without: names of files to leave out."""
    for file in sorted(model.iterdir()):
        named = file.suffix in _COMPANIONS or file.name.upper().startswith("LICEN")
        wanted = named and file.name not in _NEVER_COPIED and file.name not in without and file.name[0] != "."
        if wanted and file.is_file() and file.stat().st_size <= _COMPANION_LIMIT:
            with explained(out / file.name, "write"):
                shutil.copyfile(file, out / file.name)


def float_type_of(reader: WeightReader) -> str:
    """The type of a checkpoint's embeddings: `float32`, `float16` or `bfloat16`."""
    table = reader.dense("model.embed_tokens.weight")
    return "bfloat16" if table.is_bfloat16 else table.values.dtype.name


def store(weight: DenseWeight, float_type: str, name: str) -> StoredTensor:
    """A weight in the type in which it is written. Raises CheckpointError for a number that the type cannot hold."""
    stored = as_float_type(weight, float_type)
    if stored.dtype != "BF16" and not np.isfinite(stored.values).all():
        raise CheckpointError(f"{name} holds numbers that are not finite, or too large for {float_type}")
    return stored


def check_new(out: Path, *sources: Path) -> None:
    """Raise ConfigurationError unless `out` is a folder that may be written: none of the sources, and new or empty."""
    if any(out.resolve() == source.resolve() for source in sources):
        raise ConfigurationError(f"--out {out} is the model itself; choose another folder")
    with explained(out, "read"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigurationError(f"--out {out} holds something already; choose a new folder")
