# SPDX-License-Identifier: Apache-2.0
"""Small models and calibration data, and readers of packed layers that share nothing with ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from open_autoglm.compress.calibration import Calibration


def random_calibration(vocabulary: int = 256, *, seed: int = 0, sequences: int = 24, longest: int = 48) -> Calibration:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(8, longest + 1, sequences)
    token_ids = generator.integers(0, vocabulary, int(lengths.sum())).astype(np.int32)
    return Calibration(token_ids, lengths.astype(np.int64), "random tokens")


def correlated_inputs(tokens: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    """float32[tokens, columns]: a few directions and channels are much larger than the others, as in real models."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    inputs = torch.randn(tokens, columns // 4, generator=generator) @ mixing
    inputs += 0.3 * torch.randn(tokens, columns, generator=generator)
    return inputs * torch.exp(torch.randn(columns, generator=generator))


def load_tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def dequantized(tensors: dict[str, torch.Tensor], module: str, method: str, bits: int = 4) -> np.ndarray:
    """float64[outputs, inputs], number by number, as the tools' documentation of their layouts has it."""
    parts = {
        name.removeprefix(f"{module}."): value.float().numpy() if value.is_floating_point() else value.numpy()
        for name, value in tensors.items()
        if name.startswith(f"{module}.")
    }
    per_word, mask = 32 // bits, (1 << bits) - 1

    def number(words: np.ndarray, row: int, column: int, place: int) -> int:
        return (int(words[row, column]) & 0xFFFFFFFF) >> (bits * place) & mask

    if method == "compressed-tensors":
        rows, columns = (int(value) for value in parts["weight_shape"])
        groups = parts["weight_scale"].shape[1]
        matrix = np.empty((rows, columns))
        for row in range(rows):
            for column in range(columns):
                group = column * groups // columns
                code = number(parts["weight_packed"], row, column // per_word, column % per_word) - (mask + 1) // 2
                zero = 0
                if "weight_zero_point" in parts:
                    zero = number(parts["weight_zero_point"], row // per_word, group, row % per_word) - (mask + 1) // 2
                matrix[row, column] = (code - zero) * float(parts["weight_scale"][row, group])
        return matrix
    groups, rows = parts["scales"].shape
    columns = parts["qweight"].shape[0] * (1 if method == "awq" else per_word)
    matrix = np.empty((rows, columns))
    place_of = {offset: place for place, offset in enumerate((0, 2, 4, 6, 1, 3, 5, 7))}
    for row in range(rows):
        for column in range(columns):
            group = column * groups // columns
            if method == "awq":
                place = place_of[row % 8]
                code = number(parts["qweight"], column, row // 8, place)
                zero = number(parts["qzeros"], group, row // 8, place)
            else:
                assert int(parts["g_idx"][column]) == group
                code = number(parts["qweight"], column // per_word, row, column % per_word)
                zero = number(parts["qzeros"], group, row // per_word, row % per_word) + 1
            matrix[row, column] = (code - zero) * float(parts["scales"][group, row])
    return matrix
