# SPDX-License-Identifier: Apache-2.0
"""Dynamic int8 by torchao: weights in 8 bits for each output, activations rounded for each token as they come.

Products are then of whole numbers, for which GPUs have units of their own. On a CPU PyTorch computes the roundings one
operation at a time, and is slower than in float32; the native engine's int8 does the same in kernels of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from open_autoglm.errors import EngineError

if TYPE_CHECKING:
    from open_autoglm.models.glm import GlmForCausalLM


def round_dynamically(model: GlmForCausalLM) -> GlmForCausalLM:
    """Round the linear layers of the decoder in place. Embeddings and the output matrix, which may be one, stay.

    A token's result does not depend on the others of its batch. Layers that a tool packed already stay as they are.
    Raises EngineError when torchao is missing.
    """
    try:
        with _quiet():
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except ImportError as error:
        raise EngineError(
            f"int8-dynamic weights need torchao ({error.name or error}): pip install 'open-autoglm[torchao]'"
        ) from None
    for layer in model.model.decoder_layers():
        quantize_(layer, Int8DynamicActivationInt8WeightConfig(), filter_fn=_is_linear)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchao tells when it is imported: of each of its kernels that this machine cannot load."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _is_linear(module: nn.Module, name: str) -> bool:
    del name
    return type(module) is nn.Linear
