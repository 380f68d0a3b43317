# SPDX-License-Identifier: Apache-2.0
"""The packings of AutoAWQ and of the GPTQ tools, read; without PyTorch.

Both keep `qweight`, `qzeros` and `scales` for each linear layer, inputs first and outputs last, in int32 words. AWQ has
4 bits and packs along the outputs in the order 0 2 4 6 1 3 5 7; GPTQ packs weights along the inputs and zeros along the
outputs, in order, in 4 or 8 bits. GPTQ's first format stores each zero less one. Its `g_idx` names each input's group,
which is out of order when the tool quantised by falling activation (`desc_act`).
Source: Lin et al. 2023 (AWQ), Frantar et al. 2022 (GPTQ), and the packings of AutoAWQ 0.2, AutoGPTQ 0.7, GPTQModel 7.
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

AWQ_NIBBLE_OF_OUTPUT: Final = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of an int32, from the lowest, holds output 8i, 8i + 1, ... 8i + 7."""


def read_awq_gptq_layout(method: str, settings: dict[str, Any]) -> PackedLayout:
    """Read a `quantization_config` whose method is `awq` or `gptq`.

    Raises CheckpointError, naming the field, for anything but AWQ's `gemm` in 4 bits and GPTQ's `gptq` and `gptq_v2`
    formats in 4 or 8.
    """
    bits = _field(settings, "bits", "w_bit")
    if isinstance(bits, bool) or bits not in ((4,) if method == "awq" else (4, 8)):
        known = "only 4" if method == "awq" else "only 4 and 8"
        raise CheckpointError(f"{SETTINGS}: {method} with bits {bits!r} is not supported, {known}")
    group_size = check_group_size(_field(settings, "group_size", "q_group_size"))
    if method == "awq":
        version = str(settings.get("version") or settings.get("format") or "gemm").lower()
        if version != "gemm":
            raise CheckpointError(f"{SETTINGS}: the AWQ version {version!r} is not supported, only 'gemm'")
        return PackedLayout("awq", group_size)
    form = str(settings.get("format") or settings.get("checkpoint_format") or "gptq").lower()
    if form not in ("gptq", "gptq_v2"):
        raise CheckpointError(f"{SETTINGS}: the GPTQ format {form!r} is not supported, only 'gptq' and 'gptq_v2'")
    return PackedLayout("gptq", group_size, zero_offset=1 if form == "gptq" else 0, bits=bits)


def unpack_awq_gptq(
    layout: PackedLayout, parts: dict[str, np.ndarray], shape: tuple[int, ...], name: str
) -> Int4Weight | Int8Weight | DenseWeight:
    """Read one linear layer, as `packed_layouts.unpack_layer` says."""
    rows, columns = shape
    group_size = columns if layout.group_size == -1 else layout.group_size
    per_word = 32 // layout.bits
    if rows % per_word or columns % per_word or columns % group_size:
        raise CheckpointError(
            f"{name}: {rows} outputs and {columns} inputs cannot be {layout.bits}-bit weights in groups of {group_size}"
        )
    groups = columns // group_size
    packed = (columns, rows // per_word) if layout.method == "awq" else (columns // per_word, rows)
    expected = {"qweight": packed, "qzeros": (groups, rows // per_word), "scales": (groups, rows)}
    check_parts(parts, expected, ("scales",), name)
    scales = np.ascontiguousarray(parts["scales"].T, dtype=np.float32)
    if layout.method == "awq":
        values = _awq_order(unpack_words(parts["qweight"], 4))
        zeros = _awq_order(unpack_words(parts["qzeros"], 4))
        return Int4Weight(np.ascontiguousarray(values.T), scales, np.ascontiguousarray(zeros.T), group_size)
    values = unpack_words(np.ascontiguousarray(parts["qweight"].T), layout.bits)
    # The tools subtract a one from each number by one subtraction from the word, borrows included: so is it undone.
    ones = 0x11111111 if layout.bits == 4 else 0x01010101
    words = parts["qzeros"].view(np.uint32) + np.uint32(ones * layout.zero_offset)
    zeros = np.ascontiguousarray(unpack_words(words, layout.bits).T)
    order = column_order(parts.get("g_idx"), columns, group_size, f"{name}.g_idx")
    if order is not None:
        values = np.ascontiguousarray(values[:, order])
    return as_weight(Int4Weight(values, scales, zeros, group_size, order), layout.bits)


def _field(settings: dict[str, Any], name: str, older: str) -> Any:
    if name in settings:
        return settings[name]
    if older in settings:
        return settings[older]
    raise CheckpointError(f"{SETTINGS}: the field {name!r} is missing")


def _awq_order(nibbles: np.ndarray) -> np.ndarray:
    """uint8[n, outputs] as packed -> in the order of the outputs."""
    return nibbles.reshape(nibbles.shape[0], -1, 8)[..., AWQ_NIBBLE_OF_OUTPUT].reshape(nibbles.shape)
