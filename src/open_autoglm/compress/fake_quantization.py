# SPDX-License-Identifier: Apache-2.0
"""A model that computes with rounded weights while it is trained, on exactly the grids that it will be packed with.

The forward pass sees codes and scales as a file holds them; the gradient goes to the weights underneath as if there
were no rounding, but where a weight lies beyond its grid. How much of its range each group's grid spans is searched
once, on the weights at the beginning; the range itself follows the weights.
Source: Bengio et al. 2013 (straight-through estimator), Jacob et al. 2018 (training with fake quantisation).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from open_autoglm.compress.grids import Grid, RoundedMatrix, Rounding, fit_shares, round_to_grid, span_grid
from open_autoglm.compress.layer_packing import PackingPlan
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.quantized_linear import round_to_int8


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor, zeros: Tensor, rounding: Rounding) -> Tensor:
        groups = weight.unflatten(1, (scales.shape[1], -1))
        codes = torch.round(groups / scales[..., None]) + zeros[..., None]
        inside = (codes >= rounding.lowest) & (codes <= rounding.highest)
        ctx.save_for_backward(inside.flatten(1))
        values = codes.clamp_(rounding.lowest, rounding.highest).sub_(zeros[..., None]).mul_(scales[..., None])
        return values.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


class _RoundedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        del ctx
        values, scale = round_to_int8(rows)
        return values.float() * scale[..., None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        del ctx
        return gradient


class FakeQuantizedLinear(nn.Linear):
    """A linear layer that computes with the numbers that its weight will be rounded to."""

    shares: Tensor

    def __init__(self, linear: nn.Linear, rounding: Rounding) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.rounding = rounding
        # A function of the weights at the beginning, so a run that goes on finds it again.
        self.register_buffer("shares", fit_shares(linear.weight.detach(), rounding), persistent=False)

    def grid(self) -> Grid:
        """The grid of the weights as they are now."""
        return span_grid(self.weight.detach(), self.shares, self.rounding)

    def rounded(self) -> RoundedMatrix:
        """The codes that the forward pass computes with."""
        return round_to_grid(self.weight.detach(), self.grid(), self.rounding)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear names it
        """As `nn.Linear`, with the rounded weight."""
        grid = self.grid()
        return F.linear(input, _Rounded.apply(self.weight, grid.scales, grid.zeros, self.rounding), self.bias)


class FakeQuantizedEmbedding(nn.Embedding):
    """An embedding table whose rows are rounded to int8 when they are looked up."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self.weight = embedding.weight

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Embedding names it
        """As `nn.Embedding`."""
        return _RoundedRows.apply(super().forward(input).flatten(0, -2)).view(*input.shape, -1)


class FakeQuantizedOutput(nn.Linear):
    """An output matrix whose rows are rounded to int8."""

    def __init__(self, linear: nn.Linear, weight: nn.Parameter) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as nn.Linear names it
        """As `nn.Linear`, with the rounded weight."""
        return F.linear(input, _RoundedRows.apply(self.weight))


def fake_quantize(model: GlmForCausalLM, plan: PackingPlan, *, tables: bool) -> GlmForCausalLM:
    """Let the decoder's linear layers compute with rounded weights, in place; those in `plan.kept` stay as they are.

    tables: round embeddings and output matrix to int8 too, as `int4.safetensors` stores them. The parameters keep their
    names, so checkpoints of the model before and after are alike.
    """
    for index, layer in enumerate(model.model.decoder_layers()):
        for name, module in list(layer.named_modules()):
            full = f"model.layers.{index}.{name}"
            if isinstance(module, nn.Linear) and full not in plan.kept:
                layer.set_submodule(name, FakeQuantizedLinear(module, plan.rounding))
    if tables:
        embedding = FakeQuantizedEmbedding(model.model.embed_tokens)
        model.model.embed_tokens = embedding
        shared = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
        model.lm_head = FakeQuantizedOutput(model.lm_head, model.get_parameter(shared))
    return model


@torch.no_grad()
def settle(model: GlmForCausalLM) -> GlmForCausalLM:
    """Give a model with fake quantisation plain layers with the rounded numbers for good, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FakeQuantizedLinear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
            plain.weight, plain.bias = nn.Parameter(module.rounded().values()), module.bias
            model.set_submodule(name, plain)
    embedding = model.model.embed_tokens
    if isinstance(embedding, FakeQuantizedEmbedding):
        plain_table = nn.Embedding(embedding.num_embeddings, embedding.embedding_dim, device="meta")
        plain_table.weight = nn.Parameter(_RoundedRows.apply(embedding.weight))
        model.model.embed_tokens = plain_table
        tied = model.config.tie_word_embeddings
        output = nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False, device="meta")
        output.weight = plain_table.weight if tied else nn.Parameter(_RoundedRows.apply(model.lm_head.weight))
        model.lm_head = output
    return model
