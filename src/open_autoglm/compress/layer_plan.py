# SPDX-License-Identifier: Apache-2.0
"""Which linear layers a decoder layer has, in the order in which they compute, and which see the same input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from open_autoglm.models.experts import MixtureOfExperts
from open_autoglm.models.glm import DecoderLayer, FeedForward


@dataclass(frozen=True)
class InputGroup:
    """Linear layers that see the same input, by name within the decoder layer. expert: of a mixture, else None."""

    members: tuple[str, ...]
    expert: int | None = None

    @property
    def leader(self) -> str:
        """The one that is watched."""
        return self.members[0]


@dataclass(frozen=True)
class FeedForwardPlan:
    """A gated block: who computes gate and up, and who takes their product."""

    first: InputGroup
    second: InputGroup


@dataclass(frozen=True)
class LayerPlan:
    """The linear layers of one decoder layer.

    routed: the experts' blocks, empty in a dense layer. block: the dense block, or the shared expert's, which computes
    last. router: the name of the mixture's router, which stays in floating point.
    """

    attention: InputGroup
    output: InputGroup
    block: FeedForwardPlan
    routed: tuple[FeedForwardPlan, ...] = ()
    router: str | None = None

    def stages(self) -> tuple[tuple[InputGroup, ...], ...]:
        """Groups whose inputs do not depend on each other, in the order of computing; the last group computes last."""
        first = (*(plan.first for plan in self.routed), self.block.first)
        second = (*(plan.second for plan in self.routed), self.block.second)
        return (self.attention,), (self.output,), first, second

    def modules(self) -> tuple[str, ...]:
        """The names of all linear layers, in the order of computing."""
        return tuple(name for stage in self.stages() for group in stage for name in group.members)


def plan_layer(layer: DecoderLayer) -> LayerPlan:
    """The plan of a layer of any of our architectures."""
    attention = InputGroup(tuple(f"self_attn.{letter}_proj" for letter in "qkv"))
    output = InputGroup(("self_attn.o_proj",))
    feed_forward = layer.mlp
    if isinstance(feed_forward, MixtureOfExperts):
        routed = tuple(_gated(f"mlp.experts.{i}", expert=i) for i in range(len(feed_forward.experts)))
        return LayerPlan(attention, output, _gated("mlp.shared_experts"), routed, "mlp.gate")
    if isinstance(feed_forward, FeedForward):
        return LayerPlan(
            attention,
            output,
            FeedForwardPlan(InputGroup(("mlp.gate_up_proj",)), InputGroup(("mlp.down_proj",))),
        )
    return LayerPlan(attention, output, _gated("mlp"))


def linear_of(layer: DecoderLayer, name: str) -> nn.Linear:
    """The linear layer of that name within a decoder layer."""
    module = layer.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}")
    return module


def _gated(prefix: str, *, expert: int | None = None) -> FeedForwardPlan:
    return FeedForwardPlan(
        InputGroup((f"{prefix}.gate_proj", f"{prefix}.up_proj"), expert), InputGroup((f"{prefix}.down_proj",), expert)
    )
