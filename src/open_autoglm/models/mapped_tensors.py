# SPDX-License-Identifier: Apache-2.0
"""One safetensors file, memory-mapped: its tensors as read-only numpy views, copied nowhere; without PyTorch.

The header is not trusted: every offset is checked against the shape, its neighbours and the size of the file before
anything is looked at. Written here because the library's numpy interface copies, and has no bfloat16.
Source: the format's description, https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import contextlib
import json
import mmap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from open_autoglm.errors import CheckpointError

_TYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),  # the bits: numpy has no such type
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
}
_LENGTH_BYTES: Final = 8
_MAX_HEADER: Final = 100_000_000
"""The format's own limit; a header of a hundred thousand tensors is a tenth of it."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies. dtype: the format's name, such as `BF16`; begin, end: bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class MappedTensors:
    """The tensors of one file. Arrays that were handed out stay valid after `close`.

    entries: by name. metadata: the texts that the writer left in the header.

    Raises CheckpointError, naming the file and what is wrong with it, when it is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = "it is empty" if isinstance(error, ValueError) else (error.strerror or str(error)).lower()
            raise CheckpointError(f"cannot read {path}: {reason}; get the checkpoint again") from None
        try:
            self.entries, self.metadata = _read_header(self._memory)
        except _HeaderError as error:
            self.close()
            # Names of tensors are whatever somebody wrote there; a terminal takes printable ones only.
            reason = "".join(item if item.isprintable() else ascii(item)[1:-1] for item in str(error))
            raise CheckpointError(f"cannot read {path}: {reason}; get the checkpoint again") from None

    def array(self, name: str) -> np.ndarray:
        """The tensor `name`, which must be in `entries`: a read-only view of the file, bfloat16 as uint16."""
        entry = self.entries[name]
        dtype = _TYPES[entry.dtype]
        view = np.frombuffer(self._memory, dtype, count=(entry.end - entry.begin) // dtype.itemsize, offset=entry.begin)
        if not view.flags.aligned:  # kernels may read whole vectors; a header of odd length costs a copy
            view = view.copy()
            view.flags.writeable = False
        return view.reshape(entry.shape)

    def forget_pages(self) -> None:
        """Give back the memory of what was read; it is read again when it is looked at again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let the file go, at once or when the last array that was handed out goes."""
        with contextlib.suppress(BufferError):
            self._memory.close()


class _HeaderError(Exception):
    """What is wrong with a header."""


def _read_header(memory: mmap.mmap) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    if len(memory) < _LENGTH_BYTES:
        raise _HeaderError("it is too short for a safetensors file")
    length = int.from_bytes(memory[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + length
    if length > _MAX_HEADER or start > len(memory):
        raise _HeaderError(f"its header claims {length} bytes, the file has {len(memory)}")
    try:
        header = json.loads(bytes(memory[_LENGTH_BYTES:start]).decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise _HeaderError("its header is not JSON") from None
    if not isinstance(header, dict) or memory[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise _HeaderError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _HeaderError("__metadata__ must hold texts")
    entries = {name: _read_entry(name, value, start, len(memory)) for name, value in header.items()}
    # Tensors lie end to end: no byte belongs to two of them or to none.
    places = sorted((entry.begin, entry.end, name) for name, entry in entries.items())
    if places and places[0][0] != start:
        raise _HeaderError(f"its data does not begin with a tensor ({places[0][2]} comes first)")
    for (_, end, name), (begin, _, following) in pairwise(places):
        if begin != end:
            raise _HeaderError(f"the tensors {name} and {following} overlap or leave a gap")
    if (places[-1][1] if places else start) != len(memory):
        raise _HeaderError("it is longer than its tensors")
    return entries, metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _HeaderError(f"its header names {twice[:80]!r} twice")
    return values


def _read_entry(name: str, value: object, start: int, size: int) -> TensorEntry:
    """start: where the data begins in a file of `size` bytes."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _HeaderError(f"the entry of {name[:80]!r} must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise _HeaderError(f"{name} has the unknown type {dtype!r:.80}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise _HeaderError(f"{name} has a shape or offsets that are not whole numbers")
    count = 1
    for extent in shape:
        count *= extent
    begin, end = offsets
    if not 0 <= begin <= end <= size - start:
        raise _HeaderError(f"{name} lies at bytes {begin} to {end} of {size - start}")
    if count * _TYPES[dtype].itemsize != end - begin:
        raise _HeaderError(f"{name} has {end - begin} bytes, which is not {dtype}{shape}")
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)


def _whole_numbers(values: object) -> bool:
    """A list of whole numbers that no arithmetic can make surprising."""
    return (
        isinstance(values, list)
        and len(values) <= 16
        and all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62 for item in values)
    )
