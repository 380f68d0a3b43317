# SPDX-License-Identifier: Apache-2.0
"""One decoder layer of a checkpoint in PyTorch, for work that cannot hold the whole model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from open_autoglm.models.glm import DecoderLayer
from open_autoglm.models.weights import WeightReader


def load_layer(reader: WeightReader, index: int) -> DecoderLayer:
    """One decoder layer in float32 and evaluation mode, in memory of its own.

    Raises CheckpointError for a tensor that is not in floating point.
    """
    with torch.device("meta"):
        layer = DecoderLayer(reader.config, index)
    names = list(layer.state_dict())
    layer.load_state_dict({name: _tensor(reader, f"model.layers.{index}.{name}") for name in names}, assign=True)
    return layer.eval().requires_grad_(False)


def _tensor(reader: WeightReader, name: str) -> Tensor:
    weight = reader.dense(name)
    tensor = torch.empty(weight.shape, dtype=torch.float32)
    np.copyto(tensor.numpy(), weight.float32())
    return tensor
