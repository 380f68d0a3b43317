# SPDX-License-Identifier: Apache-2.0
"""Safetensors files written one tensor after the other, so that little of them lies in memory; without PyTorch.

Written here because the library's numpy interface has no bfloat16 and wants all tensors at once.
Source: the format's description, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.models.mapped_tensors import MappedTensors
from open_autoglm.models.weight_types import DenseWeight
from open_autoglm.storage import replacing

_TYPES: Final = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "int8": "I8", "uint8": "U8"}
_SIZES: Final = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}


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


@dataclass(frozen=True)
class TensorForm:
    """What the header of a file says about a tensor. dtype: the format's name, such as `BF16`."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its numbers."""
        return math.prod(self.shape) * _SIZES[self.dtype]


def write_safetensors(tensors: Mapping[str, StoredTensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors in the order given, atomically. Raises StorageError when the disk refuses."""
    forms = {name: TensorForm(tensor.dtype, tensor.values.shape) for name, tensor in tensors.items()}
    stream_safetensors(forms, lambda name: tensors[name], path, metadata)


def stream_safetensors(
    forms: Mapping[str, TensorForm], read: Callable[[str], StoredTensor], path: Path, metadata: Mapping[str, str]
) -> None:
    """As `write_safetensors`, with one tensor in memory at a time: `read` gives each by name when its turn comes.

    Raises StorageError when the disk refuses, ValueError when `read` gives another type or size than was said.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, form in forms.items():
        header[name] = {
            "dtype": form.dtype,
            "shape": list(form.shape),
            "data_offsets": [offset, offset + form.nbytes],
        }
        offset += form.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, form in forms.items():
            tensor = read(name)
            if tensor.dtype != form.dtype or tensor.values.nbytes != form.nbytes:
                raise ValueError(f"{name} is {tensor.dtype} of {tensor.values.nbytes} bytes, the header says {form}")
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
