# SPDX-License-Identifier: Apache-2.0
"""Adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from open_autoglm.errors import CheckpointError
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapter_targets import linear_layers
from open_autoglm.models.adapters import (
    SoftPrompt,
    adapted_layers,
    attach_lora,
    dense_shape,
    freeze_layers,
    has_adapter,
)
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.tensor_file import write_tensors
from open_autoglm.models.tensor_names import CHATGLM_NORM, place_of
from open_autoglm.storage import read_json, write_json

ADAPTER_CONFIG_FILE: Final = "adapter_config.json"
ADAPTER_WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_PROMPT: Final = "prompt_embeddings"
_UNSUPPORTED: Final = {
    "use_dora": "DoRA",
    "fan_in_fan_out": "transposed weights",
    "modules_to_save": "whole modules saved beside it",
    "layer_replication": "repeated layers",
    "target_parameters": "adapted parameters that are no layers",
    "trainable_token_indices": "trained token embeddings",
    "lora_bias": "a bias in LoRA",
}
"""Fields of PEFT's LoraConfig that change what is computed in ways that we do not know."""


def write_adapter(model: GlmForCausalLM, settings: AdapterSettings, folder: Path, *, base: str = "") -> None:
    """Write the adapter of a model, each file atomically.

    base: the name or path of the checkpoint below it, for people and for PEFT's AutoPeftModel.
    Raises StorageError when the disk refuses, CheckpointError for a model without an adapter.
    """
    common = {"base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True}
    if isinstance(model.prefix, SoftPrompt):
        config = model.config
        written: dict[str, Any] = {
            **common,
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": len(model.prefix.vectors),
            "token_dim": config.hidden_size,
            "num_transformer_submodules": 1,
            "num_attention_heads": config.num_attention_heads,
            "num_layers": config.num_hidden_layers,
            "prompt_tuning_init": "RANDOM",
        }
        tensors = {_PROMPT: model.prefix.vectors}
    else:
        layers = adapted_layers(model)
        if not layers:
            raise CheckpointError("the model has no adapter to write")
        written = {
            **common,
            "peft_type": "LORA",
            "r": settings.rank,
            "lora_alpha": settings.alpha,
            "lora_dropout": settings.dropout,
            "target_modules": _short_names(model, list(layers)),
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
        }
        tensors = {}
        for name, layer in layers.items():
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A.weight
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B.weight
    detached = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    write_tensors(detached, folder / ADAPTER_WEIGHTS_FILE)
    write_json(folder / ADAPTER_CONFIG_FILE, written)


@torch.no_grad()
def read_adapter(model: GlmForCausalLM, folder: Path) -> None:
    """Freeze a model and give it the adapter of a folder, made by us or by PEFT.

    LoRA (with RSLoRA's scaling and ranks and alphas by layer) and prompt tuning are read; names may be transformers' or
    those of the ChatGLM repositories, whose fused query, key and value then share a first matrix.
    Raises CheckpointError, with the field or tensor at fault. Nothing is unpickled.
    """
    if has_adapter(model):
        raise CheckpointError("the model has an adapter already; merge it first")
    config = _read_config(folder / ADAPTER_CONFIG_FILE)
    tensors = _read_tensors(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if config.get("peft_type") == "PROMPT_TUNING":
        _read_prompt(model, tensors, folder)
        return
    where = folder / ADAPTER_CONFIG_FILE
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{where}: peft_type {config.get('peft_type')!r} is not supported; LORA and PROMPT_TUNING"
        )
    for name, meaning in _UNSUPPORTED.items():
        if config.get(name):
            raise CheckpointError(f"{where}: {name} is set, and {meaning} is not supported")
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{where}: bias {config['bias']!r} is not supported, only 'none'")
    left = dict(tensors)
    stored = {CHATGLM_NORM} if any(".query_key_value." in name or ".encoder." in name for name in tensors) else set()
    for name in linear_layers(model.config):
        place = place_of(name, model.config, stored)
        pair = [left.get(f"{_PREFIX}{place.module}.lora_{letter}.weight") for letter in "AB"]
        if pair[0] is None or pair[1] is None:
            continue
        narrow, wide = pair[0], pair[1] if place.rows is None else pair[1][place.rows]
        _check_shapes(model, name, narrow, wide, folder / ADAPTER_WEIGHTS_FILE)
        scaling, dropout = _scaling(config, name, len(narrow), where), config.get("lora_dropout", 0.0)
        layer = attach_lora(model, name, len(narrow), scaling, dropout if isinstance(dropout, float) else 0.0)
        layer.lora_A.weight.copy_(narrow)
        layer.lora_B.weight.copy_(wide)
        for letter in "AB":
            tensors.pop(f"{_PREFIX}{place.module}.lora_{letter}.weight", None)
    if tensors:
        raise CheckpointError(
            f"{folder / ADAPTER_WEIGHTS_FILE}: {min(tensors)} belongs to no layer of this model; is it another base?"
        )
    freeze_layers(model, None)


def _check_shapes(model: GlmForCausalLM, name: str, narrow: Tensor, wide: Tensor, path: Path) -> None:
    outputs, inputs = dense_shape(model.get_submodule(name))
    if narrow.dim() != 2 or narrow.shape[1] != inputs or wide.shape != (outputs, len(narrow)):
        raise CheckpointError(
            f"{path}: the matrices for {name} are {list(narrow.shape)} and {list(wide.shape)}, the layer is "
            f"{[outputs, inputs]}; is it another base?"
        )


def _scaling(config: Mapping[str, Any], name: str, rank: int, path: Path) -> float:
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise CheckpointError(f"{path}: lora_alpha must be a number, not {alpha!r}")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _by_pattern(pattern: object, name: str, default: object) -> object:
    """A value that PEFT gives some layers by the end of their names. Regular expressions from outside are not run."""
    if isinstance(pattern, dict):
        for key, value in pattern.items():
            plain = str(key).removeprefix("^")
            if name == plain or name.endswith(f".{plain}"):
                return value
    return default


def _read_prompt(model: GlmForCausalLM, tensors: Mapping[str, Tensor], folder: Path) -> None:
    path = folder / ADAPTER_WEIGHTS_FILE
    vectors = tensors.get(_PROMPT)
    if vectors is None or vectors.dim() != 2 or vectors.shape[1] != model.config.hidden_size:
        found = "missing" if vectors is None else f"{list(vectors.shape)}"
        raise CheckpointError(f"{path}: {_PROMPT} is {found}; this model needs [length, {model.config.hidden_size}]")
    prompt = SoftPrompt(len(vectors), model.config.hidden_size)
    prompt.vectors.copy_(vectors)
    model.prefix = prompt


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {ADAPTER_CONFIG_FILE}; it is not an adapter in PEFT's format")
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return values


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / ADAPTER_WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {ADAPTER_WEIGHTS_FILE}; an adapter stored as a pickle (.bin) is never opened, convert it "
            "to safetensors first"
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a usable adapter ({error})") from None


def _short_names(model: GlmForCausalLM, adapted: list[str]) -> list[str]:
    """The ends of names, such as `q_proj`, where all layers with that end are adapted; else whole names."""
    everything = linear_layers(model.config)
    names: list[str] = []
    for name in adapted:
        end = name.rpartition(".")[2]
        alike = {other for other in everything if other.endswith(f".{end}")}
        names.append(end if alike <= set(adapted) else name)
    return sorted(set(names))
