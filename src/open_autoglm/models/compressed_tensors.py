# SPDX-License-Identifier: Apache-2.0
"""The `pack-quantized` layout of compressed-tensors, as llm-compressor writes and vLLM reads it; without PyTorch.

Each linear layer has `weight_packed` (outputs first, inputs packed along the row, lowest bits first, each number with
the middle added so that it is not negative), `weight_scale` [outputs, groups], `weight_shape`, and where the zeros
are not all the middle `weight_zero_point`, packed along the outputs. `weight_g_idx` is GPTQ's `g_idx`.
Source: compressed-tensors 0.15, `pack_quantized`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from open_autoglm.errors import CheckpointError
from open_autoglm.models.packed_codes import (
    SETTINGS,
    PackedLayout,
    as_weight,
    check_group_size,
    check_parts,
    column_order,
    unpack_words,
)
from open_autoglm.models.weight_types import DenseWeight, Int4Weight, Int8Weight

_WHERE: Final = f"{SETTINGS} (compressed-tensors)"


def read_compressed_layout(settings: dict[str, Any]) -> PackedLayout:
    """Read a `quantization_config` whose method is compressed-tensors.

    Raises CheckpointError for more than one scheme, quantised activations, another format than `pack-quantized`, and
    anything but whole numbers of 4 or 8 bits by channel or by group.
    """
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise CheckpointError(
            f"{_WHERE}: 'compressed-tensors' checkpoints are read with one scheme in config_groups, not {groups!r:.80}"
        )
    [scheme] = groups.values()
    weights = scheme.get("weights") if isinstance(scheme, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{_WHERE}: the scheme has no 'weights'")
    if scheme.get("input_activations") is not None or scheme.get("output_activations") is not None:
        raise CheckpointError(f"{_WHERE}: quantised activations are not supported; use a checkpoint of weights only")
    form = scheme.get("format") or settings.get("format")
    if form != "pack-quantized":
        raise CheckpointError(f"{_WHERE}: the format {form!r} is not supported, only 'pack-quantized'")
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if isinstance(bits, bool) or bits not in (4, 8) or kind != "int":
        raise CheckpointError(f"{_WHERE}: {kind} with num_bits {bits!r} is not supported, only int with 4 and 8")
    strategy, group_size = weights.get("strategy"), weights.get("group_size")
    if strategy not in ("channel", "group"):
        raise CheckpointError(f"{_WHERE}: the strategy {strategy!r} is not supported, only 'channel' and 'group'")
    size = -1 if strategy == "channel" or group_size is None else check_group_size(group_size)
    symmetric = weights.get("symmetric", True)
    if not isinstance(symmetric, bool):
        raise CheckpointError(f"{_WHERE}: symmetric must be true or false, not {symmetric!r}")
    return PackedLayout("compressed-tensors", size, bits=bits, symmetric=symmetric)


def unpack_compressed(
    layout: PackedLayout, parts: dict[str, np.ndarray], shape: tuple[int, ...], name: str
) -> Int4Weight | Int8Weight | DenseWeight:
    """Read one linear layer, as `packed_layouts.unpack_layer` says."""
    rows, columns = shape
    group_size = columns if layout.group_size == -1 else layout.group_size
    per_word = 32 // layout.bits
    if columns % group_size:
        raise CheckpointError(f"{name}: {columns} inputs cannot be cut into groups of {group_size}")
    groups = columns // group_size
    expected = {"weight_packed": (rows, -(-columns // per_word)), "weight_scale": (rows, groups)}
    if not layout.symmetric:
        expected["weight_zero_point"] = (-(-rows // per_word), groups)
    check_parts(parts, expected, ("weight_scale",), name)
    if "weight_shape" in parts and parts["weight_shape"].tolist() != [rows, columns]:
        raise CheckpointError(
            f"{name}.weight_shape is {parts['weight_shape'].tolist()}, the model has [{rows}, {columns}]"
        )
    values = unpack_words(parts["weight_packed"], layout.bits)[:, :columns]
    if layout.symmetric:
        zeros = np.full((rows, groups), 1 << layout.bits - 1, dtype=np.uint8)
    else:
        words = np.ascontiguousarray(parts["weight_zero_point"].T)
        zeros = np.ascontiguousarray(unpack_words(words, layout.bits)[:, :rows].T)
    order = column_order(parts.get("weight_g_idx"), columns, group_size, f"{name}.weight_g_idx")
    values = np.ascontiguousarray(values if order is None else values[:, order])
    scales = np.ascontiguousarray(parts["weight_scale"], dtype=np.float32)
    return as_weight(Int4Weight(values, scales, zeros, group_size, order), layout.bits)
