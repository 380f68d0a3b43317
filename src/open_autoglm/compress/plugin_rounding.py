# SPDX-License-Identifier: Apache-2.0
"""Matrices rounded by a plugin of the kind quantizer, held to what the packed layouts can say."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from open_autoglm.compress.grids import Grid, RoundedMatrix, Rounding, stored
from open_autoglm.errors import ConfigurationError
from open_autoglm.plugins.registry import PluginRegistry


class PluginRounding:
    """Rounds by the plugin of this name. Raises ConfigurationError if it is not on or cannot be loaded."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._plugin = PluginRegistry().make("quantizer", name)

    def round(self, weight: Tensor, rounding: Rounding) -> RoundedMatrix:
        """The matrix in codes. weight: float32[rows, columns].

        Raises ConfigurationError, naming the plugin, for what it gives that cannot be stored.
        """
        rows, columns = weight.shape
        size = rounding.group_of(columns)
        try:
            parts = self._plugin.quantize(weight.numpy().copy(), rounding.bits, size)
            codes, scales, zeros = (np.asarray(parts[name]) for name in ("codes", "scales", "zeros"))
        except Exception as error:
            raise self._fault(f"failed: {type(error).__name__}: {error}") from error
        for name, values, shape in (
            ("codes", codes, (rows, columns)),
            ("scales", scales, (rows, columns // size)),
            ("zeros", zeros, (rows, columns // size)),
        ):
            if values.shape != shape or not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
                raise self._fault(f"gave {name} that are not finite numbers of the shape {shape}")
        if codes.min() < 0 or codes.max() > rounding.highest or (codes != np.rint(codes)).any():
            raise self._fault(f"gave codes that are not whole numbers from 0 to {rounding.highest}")
        if (scales <= 0).any():
            raise self._fault("gave a scale that is not more than zero")
        if zeros.min() < 1 or zeros.max() > rounding.highest or (zeros != np.rint(zeros)).any():
            raise self._fault(f"gave zeros that are not whole numbers from 1 to {rounding.highest}")
        if rounding.symmetric and (zeros != rounding.middle).any():
            raise self._fault(f"gave zeros other than {rounding.middle}, which symmetric means; give --asymmetric")
        if rounding.symmetric and codes.min() < rounding.lowest:
            raise self._fault(f"gave the code 0, which kernels of {rounding.bits} symmetric bits do not have")
        grid = Grid(stored(_tensor(scales), rounding.scale_type), _tensor(zeros))
        return RoundedMatrix(torch.from_numpy(codes.astype(np.uint8)), grid, size)

    def _fault(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"the quantizer '{self._name}', a plugin, {what}")


def _tensor(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
