# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a checkpoint by a few weights beside it: LoRA on float or rounded layers, and soft prompts."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from open_autoglm.errors import CheckpointError
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapter_targets import find_targets
from open_autoglm.models.frozen_linear import FrozenLinear, dense_weight, round_linear
from open_autoglm.models.glm import Attention, GlmForCausalLM, PackedSequences
from open_autoglm.models.quantized_linear import Int8Linear, PackedInt4Linear

_INNER: Final = (".base_layer", ".lora_A", ".lora_B", ".rounded")
"""The parts of an adapted or frozen layer."""


class LoraLinear(nn.Module):
    """A frozen linear layer and a product of two narrow matrices beside it. The names within are PEFT's.

    Source: Hu et al. 2021.
    """

    def __init__(self, base: nn.Module, rank: int, scaling: float, dropout: float) -> None:
        super().__init__()
        outputs, inputs = dense_shape(base)
        self.base_layer = base
        self.lora_A = nn.Linear(inputs, rank, bias=False)
        self.lora_B = nn.Linear(rank, outputs, bias=False)
        self.scaling, self.dropout = scaling, dropout

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """A first matrix as PEFT draws it and a second of zeros: the layer computes what it did without them."""
        bound = 1.0 / math.sqrt(self.lora_A.in_features)
        self.lora_A.weight.uniform_(-bound, bound, generator=generator)
        self.lora_B.weight.zero_()

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The one matrix that computes the same, float32[outputs, inputs]."""
        return dense_weight(_held(self.base_layer)) + self.scaling * (self.lora_B.weight @ self.lora_A.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: float[..., inputs]. Returns float[..., outputs]."""
        narrow = self.lora_A(F.dropout(hidden, self.dropout, self.training))
        return self.base_layer(hidden) + self.scaling * self.lora_B(narrow)


class SoftPrompt(nn.Module):
    """Learnt vectors before each sequence. Source: Lester et al. 2021."""

    def __init__(self, length: int, hidden_size: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(length, hidden_size))

    @torch.no_grad()
    def reset(self, table: Tensor, generator: torch.Generator) -> None:
        """Begin as the embeddings of tokens drawn from the vocabulary. table: float[vocab_size, hidden_size]."""
        chosen = torch.randint(0, len(table), (len(self.vectors),), generator=generator)
        self.vectors.copy_(table[chosen])

    def forward(self, hidden: Tensor, attention: Attention) -> tuple[Tensor, Attention, Tensor]:
        """As `InputPrefix` says. Raises CheckpointError for an attention with a cache: such a model is not served."""
        if not isinstance(attention, PackedSequences):
            raise CheckpointError("a model with a soft prompt computes whole sequences only; it cannot be served")
        length, lengths = len(self.vectors), attention.sequence_lengths
        number = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        moved = torch.arange(len(hidden), device=hidden.device) + (number + 1) * length
        joined = hidden.new_zeros(len(hidden) + length * len(lengths), hidden.shape[1])
        joined = joined.index_copy(0, moved, hidden)
        starts = lengths.cumsum(0) - lengths + torch.arange(len(lengths), device=lengths.device) * length
        places = (starts[:, None] + torch.arange(length, device=lengths.device)).flatten()
        joined = joined.index_copy(0, places, self.vectors.to(hidden.dtype).repeat(len(lengths), 1))
        return joined, PackedSequences(lengths + length), moved


def attach_adapter(model: GlmForCausalLM, settings: AdapterSettings, generator: torch.Generator) -> list[str]:
    """Freeze a model and give it an adapter that changes nothing yet; of a soft prompt, that begins as some tokens.

    For `qlora`, layers that are still in floating point are rounded; `load_model(frozen_bits=...)` has done so while
    reading. Returns the names of the adapted layers, none for a soft prompt.
    Raises CheckpointError for a target that no layer has, and for a model that has an adapter.
    """
    if has_adapter(model):
        raise CheckpointError("the model has an adapter already; merge it first")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if settings.kind == "soft_prompt":
        prompt = SoftPrompt(settings.prompt_length, model.config.hidden_size)
        prompt.reset(model.model.embed_tokens.weight.detach(), generator)
        model.prefix = prompt
        return []
    names = find_targets(model.config, settings.targets)
    for name in names:
        attach_lora(model, name, settings.rank, settings.scaling, settings.dropout).reset(generator)
    freeze_layers(model, settings.base_bits if settings.kind == "qlora" else None)
    return names


def attach_lora(model: GlmForCausalLM, name: str, rank: int, scaling: float, dropout: float) -> LoraLinear:
    """Put a LoRA of unset weights around the layer of that name."""
    layer = LoraLinear(model.get_submodule(name), rank, scaling, dropout)
    model.set_submodule(name, layer)
    return layer


def freeze_layers(model: GlmForCausalLM, bits: int | None) -> None:
    """Let the gradient pass through rounded layers; first round those in floating point, if `bits` is given."""
    for name, module in list(model.model.layers.named_modules(prefix="model.layers")):
        if name.endswith(_INNER) and not name.endswith(".base_layer"):
            continue
        frozen = round_linear(module, bits) if bits is not None and isinstance(module, nn.Linear) else module
        if isinstance(frozen, Int8Linear | PackedInt4Linear):
            model.set_submodule(name, FrozenLinear(frozen))


def has_adapter(model: GlmForCausalLM) -> bool:
    """Whether an adapter is attached."""
    return model.prefix is not None or any(isinstance(module, LoraLinear) for module in model.modules())


def adapted_layers(model: GlmForCausalLM) -> dict[str, LoraLinear]:
    """The layers with a LoRA, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@torch.no_grad()
def merge_adapter(model: GlmForCausalLM) -> GlmForCausalLM:
    """Make an ordinary float32 model of one with LoRA, in place: the same logits, up to rounding of the sums.

    Raises CheckpointError for a soft prompt, which no weight can hold.
    """
    _refuse_prompt(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(name, _linear(module.merged(), _bias(module.base_layer)))
        elif isinstance(module, FrozenLinear) and not name.endswith(".base_layer"):
            model.set_submodule(name, _linear(dense_weight(module.rounded), module.rounded.bias))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


@torch.no_grad()
def merged_tensors(model: GlmForCausalLM) -> dict[str, Tensor]:
    """The state of the ordinary model that `merge_adapter` would make, without a head that only training has.

    The model stays as it is.

    Raises CheckpointError for a soft prompt.
    """
    _refuse_prompt(model)
    tensors: dict[str, Tensor] = {}
    inside: list[str] = [] if model.tag_head is None else ["tag_head."]
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | FrozenLinear) and not name.endswith(".base_layer"):
            inside.append(f"{name}.")
            held = module.base_layer if isinstance(module, LoraLinear) else module
            tensors[f"{name}.weight"] = (
                module.merged() if isinstance(module, LoraLinear) else dense_weight(module.rounded)
            )
            if (bias := _bias(held)) is not None:
                tensors[f"{name}.bias"] = bias
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(tuple(inside))}
    return {**kept, **tensors} if inside else kept


def dense_shape(module: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer, whatever holds its weights. Raises CheckpointError for no linear layer."""
    module = _held(module)
    if isinstance(module, PackedInt4Linear):
        rows, half = module.packed.shape
        return rows, 2 * half
    if isinstance(module, nn.Linear | Int8Linear):
        rows, columns = module.weight.shape
        return rows, columns
    raise CheckpointError(f"adapter: a {type(module).__name__} cannot be adapted; load the model in float32")


def _held(module: nn.Module) -> nn.Module:
    return module.rounded if isinstance(module, FrozenLinear) else module


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(_held(module), "bias", None)
    return None if bias is None else bias.detach()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight)
    if bias is not None:
        linear.bias = nn.Parameter(bias)
    return linear


def _refuse_prompt(model: GlmForCausalLM) -> None:
    if model.prefix is not None:
        raise CheckpointError("a soft prompt cannot be merged into weights; keep the adapter beside its base")
