# SPDX-License-Identifier: Apache-2.0
"""AWQ's channel scales put into a decoder layer: what multiplies a matrix's inputs divides the outputs before it.

Before attention and feed-forward that is a norm's weight, before `o_proj` the rows of `v_proj`, before `down_proj` the
rows of `up_proj`. The layer computes the same function afterwards, but for the rounding of norms to the type in which
they are stored, which is taken into the scales.

Scales are judged by the error of the output of the whole block, attention or feed-forward: for the block's first
matrices by running it, for its last one by the moments of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from open_autoglm.compress.activations import InputMoments, LayerRunner
from open_autoglm.compress.awq import OutputError, error_by_moments, find_scales, sample_rows
from open_autoglm.compress.grids import Rounding
from open_autoglm.compress.layer_plan import FeedForwardPlan, LayerPlan, linear_of
from open_autoglm.models.experts import Router
from open_autoglm.models.glm import DecoderLayer, RMSNorm

_MOST_EXPERTS: Final = 8
"""Experts by which the channel scales of a mixture's input are chosen, beside the shared one."""


class AwqFolds:
    """Finds and folds the channel scales of one layer.

    Each fold takes the moments of the input of the matrices that it scales, changes them to those of the scaled input,
    and returns the power of the activations that was best, 0 where no scaling was.
    """

    def __init__(
        self,
        layer: DecoderLayer,
        plan: LayerPlan,
        runner: LayerRunner,
        rounding: Rounding,
        *,
        dense_type: str,
        kept: frozenset[str],
    ) -> None:
        self._layer, self._plan, self._runner, self._rounding = layer, plan, runner, rounding
        self._dense_type, self._kept = dense_type, kept

    def into_input_norm(self, moments: InputMoments) -> float:
        """Scale the inputs of query, key and value."""
        members = list(self._plan.attention.members)
        return self._into_norm(self._layer.input_layernorm, "self_attn", members, members, moments)

    def into_feed_forward_norm(self, moments: InputMoments) -> float:
        """Scale the inputs of gate and up, of every expert, and of the router."""
        members = list(self._plan.block.first.members)
        routed = self._plan.routed
        compared = members + [
            name for plan in routed[:: -(-len(routed) // _MOST_EXPERTS) or 1] for name in plan.first.members
        ]
        scaled = members + [name for plan in routed for name in plan.first.members]
        if self._plan.router is not None:
            scaled.append(self._plan.router)
        return self._into_norm(self._layer.post_attention_layernorm, "mlp", compared, scaled, moments)

    def into_values(self, moments: InputMoments) -> float:
        """Scale the inputs of the attention's output matrix; heads that share values share scales."""
        attention = self._layer.self_attn
        value, output = attention.v_proj, attention.o_proj
        shared = output.in_features // value.out_features
        head_dim = attention.head_dim

        def tie(scales: Tensor) -> Tensor:
            by_head = scales.log().view(-1, shared, head_dim).mean(dim=1, keepdim=True)
            return by_head.exp().expand(-1, shared, -1).reshape(-1)

        power, scales = self._scales([self._plan.output.leader], moments, tie=tie)
        if scales is None:
            return 0.0
        by_row = scales.view(-1, shared, head_dim)[:, 0].reshape(-1)
        _divide_rows(value, by_row, slice(None))
        output.weight.data *= scales
        _rescale(moments, scales)
        return power

    def into_up(self, moments: InputMoments) -> float:
        """Scale the inputs of the block's down matrix."""
        return self.into_up_of(self._plan.block, moments)

    def into_up_of(self, block: FeedForwardPlan, moments: InputMoments) -> float:
        """Scale the inputs of a block's down matrix, by the rows of its up matrix."""
        power, scales = self._scales([block.second.leader], moments)
        if scales is None:
            return 0.0
        up = linear_of(self._layer, block.first.members[-1])
        # Gate and up may be one matrix, gate first.
        _divide_rows(up, scales, slice(up.out_features - len(scales), None))
        linear_of(self._layer, block.second.leader).weight.data *= scales
        _rescale(moments, scales)
        return power

    def _into_norm(
        self, norm: RMSNorm, block: str, compared: list[str], scaled: list[str], moments: InputMoments
    ) -> float:
        power, scales = self._scales(compared, moments, block=block)
        if scales is None:
            return 0.0
        before = norm.weight.detach().clone()
        after = (before / scales).to(getattr(torch, self._dense_type)).float()
        # What the norm's own rounding takes away comes back in the scales; a channel that is off stays as it is.
        usable = (after != 0) & torch.isfinite(after)
        after = torch.where(usable, after, before)
        exact = torch.where(usable, before / after, torch.ones_like(before))
        norm.weight.data = after
        for name in scaled:
            module = self._layer.get_submodule(name)
            if not isinstance(module, nn.Linear | Router):
                raise TypeError(f"{name} is a {type(module).__name__}")
            module.weight.data *= exact
        _rescale(moments, exact)
        return power

    def _scales(
        self,
        names: list[str],
        moments: InputMoments,
        *,
        block: str | None = None,
        tie: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[float, Tensor | None]:
        """block: whose output is judged; the matrices' own if there is none."""
        linears = [linear_of(self._layer, name) for name in names if name not in self._kept]
        if not linears or not moments.tokens:
            return 0.0, None
        matrices = [linear.weight.detach() for linear in linears]
        if block is None:
            matrices = [sample_rows(matrix) for matrix in matrices]
            error = error_by_moments(matrices, moments.hessian)
        else:
            error = self._block_error(block, linears)
        found = find_scales(matrices, moments.magnitudes / moments.tokens, self._rounding, error, tie=tie)
        return found.power, found.scales if found.power else None

    def _block_error(self, block: str, linears: list[nn.Linear]) -> OutputError:
        run = self._runner.block(block)
        exact = run()

        def error(candidates: Sequence[Tensor]) -> float:
            before = [linear.weight.data for linear in linears]
            try:
                for linear, candidate in zip(linears, candidates, strict=True):
                    linear.weight.data = candidate
                return float((run() - exact).square().sum())
            finally:
                for linear, weight in zip(linears, before, strict=True):
                    linear.weight.data = weight

        return error


def _divide_rows(linear: nn.Linear, scales: Tensor, rows: slice) -> None:
    linear.weight.data[rows] /= scales[:, None]
    if linear.bias is not None:
        linear.bias.data[rows] /= scales


def _rescale(moments: InputMoments, scales: Tensor) -> None:
    """The moments of inputs that are divided by the scales."""
    moments.hessian /= scales[:, None] * scales
    moments.magnitudes /= scales
