# SPDX-License-Identifier: Apache-2.0
"""Safetensors files written one tensor after the other, so that little of them lies in memory; without PyTorch.

Written here because the library's numpy interface has no bfloat16 and wants all tensors at once.
Source: the format's description, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.models.mapped_tensors import MappedTensors
from open_autoglm.models.weight_types import DenseWeight
from open_autoglm.storage import replacing

_TYPES: Final = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int8": "I8", "uint8": "U8"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file. dtype: the format's name, such as `BF16`, whose bits numpy holds as uint16."""

    dtype: str
    values: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> StoredTensor:
        """An array in its own type; uint16 is bfloat16's bits."""
        return cls("BF16" if values.dtype == np.uint16 else _TYPES[values.dtype.name], values)

    @classmethod
    def read(cls, file: MappedTensors, name: str) -> StoredTensor:
        """A tensor of a mapped file, which is read when it is written."""
        return cls(file.entries[name].dtype, file.array(name))


def write_safetensors(tensors: Mapping[str, StoredTensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors in the order given, atomically. Raises StorageError when the disk refuses."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.values.shape),
            "data_offsets": [offset, offset + tensor.values.nbytes],
        }
        offset += tensor.values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            np.ascontiguousarray(tensor.values).tofile(file)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bfloat16, as uint16; ties go to the even one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def as_float_type(weight: DenseWeight, name: str) -> StoredTensor:
    """A floating-point tensor in the type called `name`: `float32`, `float16` or `bfloat16`; no copy if it is in it."""
    if weight.is_bfloat16 and name == "bfloat16":
        return StoredTensor("BF16", weight.values)
    if name == "bfloat16":
        return StoredTensor("BF16", to_bfloat16(weight.float32()))
    if weight.values.dtype == name:
        return StoredTensor.of(weight.values)
    with np.errstate(over="ignore"):  # whoever writes it looks for infinities
        return StoredTensor.of(weight.float32().astype(name))
