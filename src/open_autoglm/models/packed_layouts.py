# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a tool rounded and packed: which layout they have, and their layers read; without PyTorch."""

from __future__ import annotations

from typing import Final

import numpy as np

from open_autoglm.errors import CheckpointError
from open_autoglm.models.awq_gptq import read_awq_gptq_layout, unpack_awq_gptq
from open_autoglm.models.compressed_tensors import read_compressed_layout, unpack_compressed
from open_autoglm.models.packed_codes import SETTINGS, PackedLayout
from open_autoglm.models.weight_types import DenseWeight, Int4Weight, Int8Weight

__all__ = ["PackedLayout", "read_packed_layout", "unpack_layer"]

_METHODS: Final = ("awq", "gptq", "compressed-tensors")


def read_packed_layout(settings: object) -> PackedLayout:
    """Read the `quantization_config` of a `config.json`.

    Raises CheckpointError, naming method or field, for anything but AWQ's `gemm` in 4 bits, GPTQ's `gptq` and `gptq_v2`
    formats and compressed-tensors' `pack-quantized`, both in 4 or 8 bits.
    """
    if not isinstance(settings, dict):
        raise CheckpointError(f"{SETTINGS} must be an object, not {settings!r:.80}")
    method = settings.get("quant_method")
    if method not in _METHODS:
        raise CheckpointError(
            f"{SETTINGS} names the method {method!r}; supported are awq, gptq and compressed-tensors; use such a "
            "checkpoint, or the unquantised one with --quantize"
        )
    if method == "compressed-tensors":
        return read_compressed_layout(settings)
    return read_awq_gptq_layout(method, settings)


def unpack_layer(
    layout: PackedLayout, parts: dict[str, np.ndarray], shape: tuple[int, ...], name: str
) -> Int4Weight | Int8Weight | DenseWeight:
    """Read one linear layer.

    parts: the tensors named in `layout.parts`, those that are in the file; words in int32, scales in float32.
    shape: rows (outputs), columns (inputs). name: the layer's, for errors.
    8 bits are given as Int8Weight where each row has one scale and its zero is the middle, else in float32.
    Raises CheckpointError when a part is missing or has another shape, and for groups that are not of one size.
    """
    if layout.method == "compressed-tensors":
        return unpack_compressed(layout, parts, shape, name)
    return unpack_awq_gptq(layout, parts, shape, name)
