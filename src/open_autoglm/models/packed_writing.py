# SPDX-License-Identifier: Apache-2.0
"""Rounded layers as AutoAWQ, the GPTQ tools and compressed-tensors store them, and the `quantization_config` beside.

The inverse of `packed_layouts`, for transformers, vLLM and our own engines; without PyTorch. Inputs are always in order
(no `desc_act`), and no zero is 0, which GPTQ's first format could not say: it stores each less one, and tools disagree
about what becomes of -1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from open_autoglm.errors import CheckpointError
from open_autoglm.models.packed_codes import PackedLayout
from open_autoglm.models.tensor_writing import StoredTensor, as_float_type
from open_autoglm.models.weight_types import DenseWeight, Int4Weight
from open_autoglm.version import __version__

_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs lies in each nibble of an int32, from the lowest."""


def can_pack(layout: PackedLayout, shape: tuple[int, ...]) -> bool:
    """Whether a layer of that shape, outputs and inputs, can be stored in the layout."""
    rows, columns = shape
    if layout.group_size != -1 and columns % layout.group_size:
        return False
    per_word = 32 // layout.bits
    return columns % per_word == 0 and rows % per_word == 0


def pack_layer(layout: PackedLayout, weight: Int4Weight, scale_type: str) -> dict[str, StoredTensor]:
    """The tensors of one linear layer, by their last name.

    weight: its columns in order, its codes in `layout.bits` bits, 8 too, and no zero of 0. scale_type: `float16`,
    `bfloat16` or `float32`, which must hold the scales exactly.
    Raises CheckpointError for a scale that the type cannot hold.
    """
    scales = as_float_type(DenseWeight(weight.scales), scale_type)
    values = DenseWeight(scales.values, is_bfloat16=scales.dtype == "BF16").float32()
    if not np.array_equal(values, weight.scales):
        raise CheckpointError(f"a scale of {float(np.abs(weight.scales).max()):.3g} does not fit into {scale_type}")
    if layout.method == "compressed-tensors":
        return _pack_compressed(layout, weight, scales)
    transposed = StoredTensor(scales.dtype, np.ascontiguousarray(scales.values.T))
    if layout.method == "awq":
        codes, zeros = _words(_awq_order(weight.values.T), 4), _words(_awq_order(weight.zeros.T), 4)
        return {"qweight": StoredTensor.of(codes), "qzeros": StoredTensor.of(zeros), "scales": transposed}
    codes = np.ascontiguousarray(_words(weight.values, layout.bits).T)
    zeros = _words((weight.zeros - np.uint8(layout.zero_offset)).T, layout.bits)
    columns = weight.values.shape[1]
    group_of = (np.arange(columns) // weight.group_size).astype(np.int32)
    return {
        "qweight": StoredTensor.of(codes),
        "qzeros": StoredTensor.of(zeros),
        "scales": transposed,
        "g_idx": StoredTensor.of(group_of),
    }


_CACHE_SCHEME: Final = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


def quantization_config(
    layout: PackedLayout, *, method: str, symmetric: bool, kept: Sequence[str], cache_scales: bool = False
) -> dict[str, Any]:
    """The `quantization_config` for `config.json`.

    method: how the codes were found, for people. kept: modules in floating point, besides embeddings, `lm_head` and
    routers, which always are. cache_scales: each layer has a scale for its keys and one for its values, of
    compressed-tensors only.
    """
    if layout.method == "awq":
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": layout.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(kept) or None,
        }
    if layout.method == "gptq":
        return {
            "quant_method": "gptq",
            "bits": layout.bits,
            "group_size": layout.group_size,
            "desc_act": False,
            "sym": symmetric,
            "lm_head": False,
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
            "meta": {"quantizer": [f"open-autoglm:{__version__}"], "method": method},
            **({"dynamic": {f"-:^{re.escape(name)}$": {} for name in kept}} if kept else {}),
        }
    by_group = layout.group_size != -1
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", *kept],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "pack-quantized",
                "weights": {
                    "num_bits": layout.bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "group" if by_group else "channel",
                    "group_size": layout.group_size if by_group else None,
                    "dynamic": False,
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        **({"kv_cache_scheme": _CACHE_SCHEME} if cache_scales else {}),
    }


def _pack_compressed(layout: PackedLayout, weight: Int4Weight, scales: StoredTensor) -> dict[str, StoredTensor]:
    packed = {
        "weight_packed": StoredTensor.of(_words(weight.values, layout.bits)),
        "weight_scale": scales,
        "weight_shape": StoredTensor.of(np.array(weight.values.shape, dtype=np.int64)),
    }
    if not layout.symmetric:
        zeros = np.ascontiguousarray(_words(weight.zeros.T, layout.bits).T)
        packed["weight_zero_point"] = StoredTensor.of(zeros)
    return packed


def _words(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8[n, m] -> int32[n, m * bits / 32], the first number in the lowest bits."""
    halves = np.ascontiguousarray(codes, dtype=np.uint8)
    if bits == 4:
        halves = halves[:, 0::2] | (halves[:, 1::2] << 4)
    return np.ascontiguousarray(halves).view("<i4").astype(np.int32, copy=False)


def _awq_order(codes: np.ndarray) -> np.ndarray:
    """[n, outputs] -> the order in which the nibbles of a word hold them."""
    return codes.reshape(codes.shape[0], -1, 8)[..., _AWQ_ORDER].reshape(codes.shape)
