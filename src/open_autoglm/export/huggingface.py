# SPDX-License-Identifier: Apache-2.0
"""A model as a folder that `transformers` loads by itself: safetensors in shards, configuration, tokenizer, template.

Whatever layout the model has (ChatGLM's, packed in 4 bits, a bundle), the folder is the plain one of its transformers
class, in floating point. Tensor after tensor, without PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.export.companions import copy_papers, write_configuration, write_tokenizer_files
from open_autoglm.export.destination import new_folder
from open_autoglm.export.source import Source
from open_autoglm.models.model_folder import INDEX_FILE, WEIGHTS_FILE
from open_autoglm.models.tensor_names import tensor_shapes
from open_autoglm.models.tensor_writing import StoredTensor, TensorForm, as_float_type, stream_safetensors
from open_autoglm.models.weights import DenseWeight, WeightReader, open_weights
from open_autoglm.storage import write_json

DTYPES: Final = ("auto", "float32", "bfloat16", "float16")
_TYPES: Final = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_UNITS: Final = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
_EXACT: Final = "e_score_correction_bias"
"""It decides which expert is chosen, so transformers keeps it in float32."""

Progress = Callable[[int, int], None]


def export_huggingface(
    source: Source,
    out: Path,
    *,
    dtype: str = "auto",
    max_shard_size: str = "5GB",
    force: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the model as the folder `out` and return what was written, JSON-ready.

    dtype: of the weights, one of `DTYPES`; `auto` is that of the model's own embedding. max_shard_size: bytes of one
    file at most, such as `5GB`; a larger tensor has a file of its own. on_progress: as for `export_gguf`.
    Raises ConfigurationError for `out` or another argument, CheckpointError for the model, StorageError when the disk
    refuses.
    """
    if dtype not in DTYPES:
        raise ConfigurationError(f"unknown --dtype '{dtype}'; choose one of: {', '.join(DTYPES)}")
    most = parse_size(max_shard_size)
    with open_weights(source.folder) as reader:
        chosen = _stored_type(reader) if dtype == "auto" else dtype
        forms = {
            name: TensorForm("F32" if name.endswith(_EXACT) else _TYPES[chosen], shape)
            for name, shape in tensor_shapes(source.config)
        }
        total = sum(form.nbytes for form in forms.values())
        shards = _shards(forms, most)
        record = {"format": "huggingface", "model": source.name, "dtype": chosen}
        written = 0

        def read(name: str) -> StoredTensor:
            nonlocal written
            reader.forget_pages()
            tensor = _tensor(reader, name, chosen)
            written += 1
            if on_progress is not None:
                on_progress(written, len(forms))
            return tensor

        with new_folder(out, source.folder, total, record, force=force) as folder:
            names = [WEIGHTS_FILE]
            if len(shards) > 1:
                names = [f"model-{place:05d}-of-{len(shards):05d}.safetensors" for place in range(1, len(shards) + 1)]
            for name, shard in zip(names, shards, strict=True):
                stream_safetensors(shard, read, folder / name, {})
            if len(shards) > 1:
                where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
                write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": where})
            notes = write_tokenizer_files(source, folder)
            copy_papers(source, folder)
            write_configuration(source, folder, chosen)
    return {
        "format": "huggingface",
        "folder": str(out),
        "dtype": chosen,
        "architecture": source.config.architecture,
        "files": names,
        "tensors": len(forms),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        "notes": notes,
    }


def parse_size(text: str) -> int:
    """Bytes, from a number with KB, MB or GB, of a thousand each. Raises ConfigurationError for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(KB|MB|GB)?", text.strip().upper())
    size = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if size < 1:
        raise ConfigurationError(f"--max-shard-size {text!r} is not a size; write one such as 5GB or 500MB")
    return size


def _stored_type(reader: WeightReader) -> str:
    table = reader.dense("model.embed_tokens.weight")
    return "bfloat16" if table.is_bfloat16 else table.values.dtype.name


def _shards(forms: dict[str, TensorForm], most: int) -> list[dict[str, TensorForm]]:
    shards: list[dict[str, TensorForm]] = [{}]
    filled = 0
    for name, form in forms.items():
        if shards[-1] and filled + form.nbytes > most:
            shards.append({})
            filled = 0
        shards[-1][name] = form
        filled += form.nbytes
    return shards


def _tensor(reader: WeightReader, name: str, dtype: str) -> StoredTensor:
    weight = reader.linear(name.removesuffix(".weight")) if _is_matrix(name) else reader.dense(name)
    if not isinstance(weight, DenseWeight):
        weight = DenseWeight(weight.float32())
    stored = as_float_type(weight, "float32" if name.endswith(_EXACT) else dtype)
    if stored.dtype == "F16" and not np.isfinite(stored.values).all():
        raise CheckpointError(f"{name} holds numbers that are too large for float16; use --dtype bfloat16 or float32")
    return stored


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name
