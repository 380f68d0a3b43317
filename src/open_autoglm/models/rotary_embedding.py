# SPDX-License-Identifier: Apache-2.0
"""RoPE in PyTorch: tables of cosines and sines for the tokens of a batch, and turning heads by them."""

from __future__ import annotations

import torch
from torch import Tensor

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.rotary import rotary_frequencies
from open_autoglm.models.training_functions import can_use, rotate_pairs


def rotary_tables(positions: Tensor, lengths: Tensor | None, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE's angles, float32[num_tokens, 1, rotary_dim / 2].

    positions: int64[num_tokens], each token's place in its sequence. lengths: int64[num_tokens], the known tokens of
    that sequence, which dynamic scaling depends on; None stands for no more than each token and those before it.
    Source: Su et al. 2021; the scaled kinds as `rotary_frequencies` says.
    """
    if config.rope_scaling is None:
        exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32, device=positions.device)
        exponents = exponents / config.rotary_dim
        angles = positions.to(torch.float32)[:, None, None] / config.rope_theta**exponents
        return angles.cos(), angles.sin()
    known = None
    if config.rope_scaling.rope_type == "dynamic":
        known = positions + 1 if lengths is None else torch.maximum(lengths, positions + 1)
    frequencies, scale = _frequencies(config, known)
    angles = positions.to(torch.float32)[:, None, None] * frequencies.to(positions.device)
    return angles.cos() * scale, angles.sin() * scale


def _frequencies(config: ModelConfig, known: Tensor | None) -> tuple[Tensor, float]:
    """known: int64[num_tokens], the length that counts for each token; None when none does.

    Returns float32[rotary_dim / 2] or, by token, float32[num_tokens, 1, rotary_dim / 2], and the attention scaling.
    """
    if known is None:
        frequencies, scale = rotary_frequencies(config)
        return torch.from_numpy(frequencies), scale
    # All lengths within the context of pretraining have the same frequencies.
    distinct, index = known.clamp_min(config.max_position_embeddings).unique(return_inverse=True)
    table = torch.stack([torch.from_numpy(rotary_frequencies(config, int(length))[0]) for length in distinct])
    return table.to(known.device)[index][:, None], 1.0


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor, *, interleaved: bool) -> Tensor:
    """Turn the first `2 * cosines.shape[-1]` numbers of each head, in pairs.

    heads: float[num_tokens, heads, head_dim]. interleaved: neighbours are pairs, as Glm has them; otherwise number i
    goes with number i + rotary_dim / 2.
    """
    if interleaved and can_use(heads):
        return rotate_pairs(heads, cosines, sines)
    half = cosines.shape[-1]
    rotary_dim = 2 * half
    if interleaved:
        first, second = heads[..., 0:rotary_dim:2].float(), heads[..., 1:rotary_dim:2].float()
    else:
        first, second = heads[..., :half].float(), heads[..., half:rotary_dim].float()
    turned = (first * cosines - second * sines, second * cosines + first * sines)
    joined = torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)
    joined = joined.to(heads.dtype)
    return joined if rotary_dim == heads.shape[-1] else torch.cat((joined, heads[..., rotary_dim:]), dim=-1)
