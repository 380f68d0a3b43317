# SPDX-License-Identifier: Apache-2.0
"""Which layers of a GLM an adapter is put on, by the names that users and PEFT give; without PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from open_autoglm.errors import CheckpointError
from open_autoglm.models.adapter_settings import ALL_LINEAR
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.tensor_names import tensor_shapes
from open_autoglm.spelling import did_you_mean

_FEED_FORWARD: Final = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
_CHATGLM_TARGETS: Final = {
    "query_key_value": "q_proj, k_proj and v_proj",
    "dense": "o_proj",
    "dense_h_to_4h": "gate_up_proj",
    "dense_4h_to_h": "down_proj",
}
"""What LLaMA-Factory and PEFT call the layers of ChatGLM repositories."""


def linear_layers(config: ModelConfig) -> list[str]:
    """The names of the linear layers of the decoder that can have an adapter.

    In a mixture of experts these are the projections of attention alone: transformers keeps routed experts in one
    tensor, and PEFT takes every name of a feed-forward layer for those, so that its format has no place for the others.
    """
    return [
        name.removesuffix(".weight")
        for name, shape in tensor_shapes(config)
        if name.startswith("model.layers.") and len(shape) == 2 and not (config.is_mixture and ".mlp." in name)
    ]


def find_targets(config: ModelConfig, targets: Iterable[str]) -> list[str]:
    """The layers that `targets` name: by the end of their names, as PEFT matches them, or all of them by `all`.

    Raises CheckpointError for a target that no layer has, with what was probably meant.
    """
    layers = linear_layers(config)
    chosen: set[str] = set()
    for target in targets:
        if target in ALL_LINEAR:
            return layers
        found = [name for name in layers if name == target or name.endswith(f".{target}")]
        if not found:
            if config.is_mixture and target.rpartition(".")[2] in _FEED_FORWARD:
                raise CheckpointError(
                    f"adapter: '{target}' cannot be adapted in a mixture of experts, for which PEFT's format has no "
                    "place; the targets there are q_proj, k_proj, v_proj and o_proj"
                )
            hint = _CHATGLM_TARGETS.get(target.rpartition(".")[2])
            known = {"all", *(name.rpartition(".")[2] for name in layers)}
            meant = f"; here it is {hint}" if hint else did_you_mean(target, known)
            raise CheckpointError(f"adapter: the model has no linear layer '{target}'{meant}")
        chosen.update(found)
    return [name for name in layers if name in chosen]
