# SPDX-License-Identifier: Apache-2.0
"""The weights with which a model trained from nothing begins."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from open_autoglm.errors import ConfigurationError
from open_autoglm.models.copying_initialization import embedding_deviation
from open_autoglm.spelling import did_you_mean

INITIALIZATIONS: Final = ("copying", "scaled_normal", "normal", "xavier", "he", "zero_residual")
_EMBEDDING_DEVIATION: Final = 0.02
_RESIDUAL: Final = ("o_proj.weight", "down_proj.weight")
"""The matrices that write to the residual stream."""


@torch.no_grad()
def initialize(
    model: nn.Module, layers: int, generator: torch.Generator, scheme: str, *, output_gain: float = 1.0
) -> None:
    """Fill all weights of a GLM with so many layers, for training from nothing.

    Norms are one and biases zero; embeddings are normal with deviation 0.02 (they are the output matrix too when tied).
    The matrices of the layers are normal, with a deviation by `scheme`:
    `scaled_normal`: 1 / sqrt(inputs), those that write to the residual divided by sqrt(2 x layers), so that its
    variance does not grow with depth (Radford et al. 2019); `zero_residual`: the same with zero for those, so that
    each layer begins as the identity (Goyal et al. 2017, Yang et al. 2022); `normal`: 0.02 for all; `xavier`:
    sqrt(2 / (inputs + outputs)) (Glorot and Bengio 2010); `he`: sqrt(2 / inputs) (He et al. 2015); `copying`: what
    `scaled_normal` has, with embeddings of deviation 1 / sqrt(hidden size) and an output matrix that equals them, for
    `models/copying_initialization.py` to go on with.
    output_gain: the last norm begins at it instead of at one, which multiplies the logits.
    Raises ConfigurationError for an unknown scheme.
    """
    if scheme not in INITIALIZATIONS:
        raise ConfigurationError(f"unknown initialization '{scheme}'{did_you_mean(scheme, INITIALIZATIONS)}")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(output_gain if name == "model.norm.weight" else 1.0)
        elif name.startswith(("model.embed_tokens", "lm_head")):
            size = parameter.shape[1]
            deviation = embedding_deviation(size) if scheme == "copying" else _EMBEDDING_DEVIATION
            parameter.normal_(0.0, deviation, generator=generator)
        elif scheme == "zero_residual" and name.endswith(_RESIDUAL):
            parameter.zero_()
        else:
            parameter.normal_(0.0, _deviation(name, parameter, scheme, layers), generator=generator)


def _deviation(name: str, matrix: Tensor, scheme: str, layers: int) -> float:
    outputs, inputs = matrix.shape
    if scheme == "normal":
        return _EMBEDDING_DEVIATION
    if scheme == "xavier":
        return math.sqrt(2.0 / (inputs + outputs))
    if scheme == "he":
        return math.sqrt(2.0 / inputs)
    residual = name.endswith(_RESIDUAL)
    return (1.0 / math.sqrt(2 * layers) if residual else 1.0) / math.sqrt(inputs)
