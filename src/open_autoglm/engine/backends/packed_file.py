# SPDX-License-Identifier: Apache-2.0
"""Packed weights in a file that is mapped and used as it lies: no reading, rounding or packing at the next start.

The file is safetensors: one byte tensor per packed matrix, at multiples of 64 bytes, after a description of them. It
carries the identity of the checkpoint that it was made from and is passed over when that has changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.engine import _native
from open_autoglm.engine.backends.native_weights import PackedWeights
from open_autoglm.errors import CheckpointError
from open_autoglm.models.mapped_tensors import MappedTensors
from open_autoglm.models.model_folder import CONFIG_FILE, ROUNDED_FILES, weight_files
from open_autoglm.storage import replacing

_ALIGNMENT: Final = 64
_DESCRIPTION: Final = "description"
_TYPES: Final = {"float32": "F32", "uint16": "U16", "int8": "I8", "uint8": "U8"}
_MAX_HEADER: Final = 100_000_000


def packed_path(folder: Path, form: str) -> Path:
    """Where the packed weights of a checkpoint lie. form: `float32`, `bfloat16`, `int8` or `int4`."""
    return folder / f"native-{form}.safetensors"


def write_packed(packed: PackedWeights, folder: Path, form: str, path: Path) -> None:
    """Write `path`, whole or not at all. folder: the checkpoint that the weights come from.

    Raises StorageError when the disk refuses, CheckpointError when the checkpoint cannot be read.
    """
    description = {
        "layout_version": _native.LAYOUT_VERSION,
        "form": form,
        "checkpoint": _identity(folder, form),
        "matrices": {name: matrix.description for name, matrix in packed.matrices.items()},
    }
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    tensors = {_DESCRIPTION: np.frombuffer(text, np.uint8)}
    tensors.update((f"matrix.{name}", matrix.buffer) for name, matrix in packed.matrices.items())
    # The longest numbers first, so that each array begins at a multiple of its own number's size.
    arrays = sorted(packed.arrays.items(), key=lambda item: -item[1].itemsize)
    tensors.update((f"array.{name}", array) for name, array in arrays)
    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _TYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(len(encoded) + 8) % _ALIGNMENT)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for tensor in tensors.values():
            np.ascontiguousarray(tensor).tofile(file)


def read_packed(folder: Path, form: str) -> PackedWeights | None:
    """The packed weights of a checkpoint, mapped; None when there are none or they were made from other weights.

    Raises CheckpointError when the file is damaged.
    """
    path = packed_path(folder, form)
    if not path.is_file():
        return None
    tensors = MappedTensors(path)
    try:
        description = json.loads(bytes(tensors.array(_DESCRIPTION)))
        if description["layout_version"] != _native.LAYOUT_VERSION or description["form"] != form:
            return None
        if description["checkpoint"] != _identity(folder, form):
            return None
        packed = PackedWeights()
        for name, values in description["matrices"].items():
            packed.matrices[name] = _native.Matrix.from_buffer(tensors.array(f"matrix.{name}"), **values)
        for name in tensors.entries:
            if name.startswith("array."):
                packed.arrays[name.removeprefix("array.")] = tensors.array(name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it, or write it again with: open-autoglm pack"
        ) from None
    return packed


def _identity(folder: Path, form: str) -> str:
    """A hash of the configuration and of the size and header of each file of weights."""
    rounded = folder / ROUNDED_FILES[form] if form in ROUNDED_FILES else None
    files = [rounded] if rounded is not None and rounded.is_file() else weight_files(folder)
    digest = hashlib.sha256((folder / CONFIG_FILE).read_bytes())
    for file in files:
        with file.open("rb") as opened:
            start = opened.read(8)
            header = opened.read(min(int.from_bytes(start, "little"), _MAX_HEADER))
        digest.update(f"\n{file.name} {file.stat().st_size}\n".encode() + start + header)
    return digest.hexdigest()
