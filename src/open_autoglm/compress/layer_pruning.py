# SPDX-License-Identifier: Apache-2.0
"""One decoder layer with fewer heads and channels, chosen by what they add on the calibration data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from open_autoglm.compress.activations import HiddenStates, InputMoments, LayerRunner
from open_autoglm.compress.importance import columns_of, most_important, unit_importance, without_columns
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import DecoderLayer, FeedForward

_OUTPUT: Final = "self_attn.o_proj"
_DOWN: Final = "mlp.down_proj"


@dataclass(frozen=True)
class LayerCut:
    """What was taken from a layer.

    heads, channels: that stayed, by number. head_share, channel_share: of what all of them add to the outputs, the
    share that went, before the repair.
    """

    heads: list[int]
    channels: list[int]
    head_share: float
    channel_share: float


def prune_layer(
    layer: DecoderLayer, states: HiddenStates, before: ModelConfig, after: ModelConfig, *, repair: bool
) -> LayerCut:
    """Change a layer of the architecture `before` in place into one of `after`, with the same width.

    states: the hidden states before it. Heads go first; channels are then judged by what the smaller attention leaves.
    """
    heads, head_share = list(range(before.num_attention_heads)), 0.0
    channels, channel_share = list(range(before.intermediate_size)), 0.0
    if after.num_attention_heads < before.num_attention_heads:
        hessian = _moments(layer, states, before, _OUTPUT)
        heads, head_share = _prune_heads(layer, hessian, before, after, repair=repair)
    if after.intermediate_size < before.intermediate_size:
        hessian = _moments(layer, states, before, _DOWN)
        channels, channel_share = _prune_channels(layer, hessian, after.intermediate_size, repair=repair)
    return LayerCut(heads, channels, head_share, channel_share)


def _moments(layer: DecoderLayer, states: HiddenStates, config: ModelConfig, name: str) -> Tensor:
    linear = layer.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name} is a {type(linear).__name__}")
    moments = InputMoments.zero(linear.in_features)
    LayerRunner(layer, states, config).watch({name: moments}, name)
    return moments.hessian


def _prune_heads(
    layer: DecoderLayer, hessian: Tensor, before: ModelConfig, after: ModelConfig, *, repair: bool
) -> tuple[list[int], float]:
    attention, size = layer.self_attn, before.head_dim
    weight = attention.o_proj.weight.detach()
    shared = before.num_attention_heads // before.num_key_value_heads
    by_head = unit_importance(weight, hessian, size)
    if after.num_key_value_heads < before.num_key_value_heads:
        by_group = unit_importance(weight, hessian, size * shared)
        groups = most_important(by_group, after.num_key_value_heads)
        heads = columns_of(groups, shared)
        key_rows = columns_of(groups, size)
        for linear in (attention.k_proj, attention.v_proj):
            _keep_rows(linear, key_rows)
    else:
        per_group = after.num_attention_heads // after.num_key_value_heads
        chosen = [most_important(part, per_group) + i * shared for i, part in enumerate(by_head.split(shared))]
        heads = torch.cat(chosen)
    columns = columns_of(heads, size)
    _keep_rows(attention.q_proj, columns)
    _set_weight(attention.o_proj, without_columns(weight, hessian, columns, repair=repair))
    return heads.tolist(), _share_lost(by_head, heads)


def _prune_channels(layer: DecoderLayer, hessian: Tensor, count: int, *, repair: bool) -> tuple[list[int], float]:
    block = layer.mlp
    if not isinstance(block, FeedForward):
        raise TypeError(f"the feed-forward block is a {type(block).__name__}")
    weight = block.down_proj.weight.detach()
    importance = unit_importance(weight, hessian, 1)
    kept = most_important(importance, count)
    _keep_rows(block.gate_up_proj, torch.cat((kept, kept + weight.shape[1])))  # gate first, then up
    _set_weight(block.down_proj, without_columns(weight, hessian, kept, repair=repair))
    return kept.tolist(), _share_lost(importance, kept)


def _share_lost(importance: Tensor, kept: Tensor) -> float:
    total = float(importance.sum())
    return max(0.0, 1.0 - float(importance[kept].sum()) / total) if total > 0 else 0.0


def _keep_rows(linear: nn.Linear, rows: Tensor) -> None:
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach()[rows].clone(), requires_grad=False)
    _set_weight(linear, linear.weight.detach()[rows].clone())


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.out_features, linear.in_features = weight.shape
