# SPDX-License-Identifier: Apache-2.0
"""GLM weights into PyTorch and back out into the Hugging Face layout: `config.json` and safetensors.

What a checkpoint may look like is the business of `models/weights.py`. Nothing is unpickled and no code of a
checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from open_autoglm.errors import CheckpointError
from open_autoglm.models.adapters import has_adapter, merged_tensors
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.frozen_linear import round_linear
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.model_folder import CONFIG_FILE, GENERATION_CONFIG_FILE, INT8_FILE, WEIGHTS_FILE, load_config
from open_autoglm.models.quantized_linear import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    PackedInt4Linear,
    int4_group_size,
    round_to_int8,
)
from open_autoglm.models.tensor_file import write_tensors
from open_autoglm.models.weights import DenseWeight, Int4Weight, Int8Weight, WeightReader, open_weights
from open_autoglm.storage import write_json

__all__ = [
    "CONFIG_FILE",
    "INT8_FILE",
    "WEIGHTS",
    "WEIGHTS_FILE",
    "Weights",
    "load_config",
    "load_model",
    "quantize_in_place",
    "save_int8",
    "save_model",
]

Weights = Literal["float32", "int8", "int4"]
WEIGHTS: Final[tuple[str, ...]] = ("float32", "int8", "int4")


def load_model(folder: Path, *, weights: str = "float32", frozen_bits: int | None = None) -> GlmForCausalLM:
    """Load a GLM in evaluation mode, in float32 or with its matrices in int8 or int4.

    folder: a bundle or a checkpoint in the Hugging Face layout. `int8.safetensors` or `int4.safetensors` that a build
    left there is used as it is; otherwise the weights are rounded while loading. What a tool packed keeps its bits,
    whatever `weights` says.
    frozen_bits: to fine-tune an adapter over it, round each linear layer of the decoder to 8 or 4 bits as soon as it is
    read, so that the memory for all of it in float32 is never needed.
    Raises CheckpointError, with the tensor or file at fault.
    """
    if weights not in WEIGHTS:
        raise CheckpointError(f"unknown weights '{weights}'; choose one of: {', '.join(WEIGHTS)}")
    with open_weights(folder, int8=weights == "int8", int4=weights == "int4") as reader:
        model = _empty_model(reader.config)
        _fill(model, reader, frozen_bits)
        rounded = reader.is_int8 or reader.is_int4
    if weights != "float32" and not rounded:
        quantize_in_place(model, weights)
    return model.eval()


def save_model(model: GlmForCausalLM, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and float32 `model.safetensors`, each atomically.

    A LoRA adapter is merged in what is written. Raises StorageError when the disk refuses, CheckpointError for a model
    whose layers AWQ or GPTQ packed and for one with a soft prompt.
    """
    if not has_adapter(model):
        _refuse_packed(model)
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in merged_tensors(model).items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    write_tensors(tensors, folder / WEIGHTS_FILE)
    config = model.config.to_hf()
    write_json(folder / CONFIG_FILE, config)
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"], "do_sample": False}
    write_json(folder / GENERATION_CONFIG_FILE, generation)


def save_int8(model: GlmForCausalLM, folder: Path) -> Path:
    """Write the state of a model already in int8 to `int8.safetensors`. Returns its path.

    Raises as `save_model` does.
    """
    _refuse_packed(model)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        for name in ("lm_head.weight", "lm_head.scale"):
            del tensors[name]
    write_tensors(tensors, folder / INT8_FILE)
    return folder / INT8_FILE


def quantize_in_place(model: GlmForCausalLM, weights: str) -> GlmForCausalLM:
    """Round every matrix of a float model to int8 or int4, to nearest.

    Embeddings and the output matrix take int8 at either width: they are the most sensitive, and looked up by row.
    A layer whose shape the 4-bit kernel cannot take gets int8 too. Norms and biases stay as they are.
    """
    table, scale = round_to_int8(model.model.embed_tokens.weight.detach())
    model.model.embed_tokens = Int8Embedding(table, scale)  # type: ignore[assignment]
    if model.config.tie_word_embeddings:
        model.lm_head = Int8Linear(table, scale)  # type: ignore[assignment]
    elif isinstance(model.lm_head, nn.Linear):
        model.lm_head = Int8Linear(*round_to_int8(model.lm_head.weight.detach()))  # type: ignore[assignment]
    for layer in model.model.decoder_layers():
        for name, linear in list(layer.named_modules()):
            if isinstance(linear, nn.Linear):
                layer.set_submodule(name, _quantized(linear, weights))
    return model


class _WithoutRandomNumbers(TorchFunctionMode):
    """Leaves new tensors as they are: on the meta device filling them would load seconds of compiler for nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        # PyTorch hands on either the function of nn.init or, where it asks no mode about that one, the tensor's own.
        if getattr(func, "__module__", None) == "torch.nn.init" or func in (Tensor.uniform_, Tensor.normal_):
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def _empty_model(config: ModelConfig) -> GlmForCausalLM:
    """The layers with their shapes and no memory, to be given tensors."""
    with torch.device("meta"), _WithoutRandomNumbers():
        return GlmForCausalLM(config)


def _refuse_packed(model: GlmForCausalLM) -> None:
    if any(isinstance(module, PackedInt4Linear) for module in model.modules()):
        raise CheckpointError(
            "a model that AWQ or GPTQ packed in 4 bits cannot be written again; copy the folder that it came from"
        )


def _quantized(linear: nn.Linear, weights: str) -> nn.Module:
    group_size = int4_group_size(linear)
    if weights == "int4" and group_size is not None:
        return Int4Linear(linear, group_size)
    bias = None if linear.bias is None else linear.bias.detach()
    return Int8Linear(*round_to_int8(linear.weight.detach()), bias)


def _fill(model: GlmForCausalLM, reader: WeightReader, frozen_bits: int | None = None) -> None:
    """Give an empty model its weights, each matrix in the form in which it is stored, or rounded for good."""
    for name, module in list(model.named_modules()):
        if name == "lm_head" and model.config.tie_word_embeddings:
            continue
        if isinstance(module, nn.Linear | nn.Embedding):
            bias = _tensor(reader.dense(f"{name}.bias")) if getattr(module, "bias", None) is not None else None
            filled = _filled(module, reader.linear(name), bias)
            if frozen_bits is not None and isinstance(filled, nn.Linear) and name != "lm_head":
                filled = round_linear(filled, frozen_bits)
            if filled is not module:
                model.set_submodule(name, filled)
            continue
        for part, _ in list(module.named_parameters(recurse=False)):
            setattr(module, part, nn.Parameter(_tensor(reader.dense(f"{name}.{part}"))))
        for part, _ in list(module.named_buffers(recurse=False)):
            setattr(module, part, _tensor(reader.dense(f"{name}.{part}")))
    if model.config.tie_word_embeddings:
        table = model.model.embed_tokens
        if isinstance(table, Int8Embedding):
            model.lm_head = Int8Linear(table.weight, table.scale)  # type: ignore[assignment]
        else:
            model.lm_head.weight = table.weight


def _filled(
    module: nn.Linear | nn.Embedding, weight: DenseWeight | Int8Weight | Int4Weight, bias: Tensor | None
) -> nn.Module:
    """The module with its weight, or another that can hold the weight as it is."""
    if isinstance(weight, Int8Weight):
        values, scale = torch.from_numpy(weight.values.copy()), torch.from_numpy(weight.scale.copy())
        return Int8Embedding(values, scale) if isinstance(module, nn.Embedding) else Int8Linear(values, scale, bias)
    if isinstance(weight, Int4Weight) and isinstance(module, nn.Linear):
        return PackedInt4Linear(weight, bias)
    module.weight = nn.Parameter(_tensor(weight))
    if isinstance(module, nn.Linear) and bias is not None:
        module.bias = nn.Parameter(bias)
    return module


def _tensor(weight: DenseWeight | Int4Weight) -> Tensor:
    """In float32 and in memory of its own, for the file is read-only."""
    tensor = torch.empty(weight.shape, dtype=torch.float32)
    np.copyto(tensor.numpy(), weight.float32())
    return tensor
