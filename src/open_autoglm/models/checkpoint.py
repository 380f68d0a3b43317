# SPDX-License-Identifier: Apache-2.0
"""GLM weights in and out of the Hugging Face layout: `config.json` and safetensors, sharded or not.

Nothing is unpickled and no code of a checkpoint is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from open_autoglm.errors import CheckpointError, StorageError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.quantized_linear import (
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    int4_group_size,
    round_to_int8,
)
from open_autoglm.models.tensor_file import write_tensors
from open_autoglm.storage import read_json, write_json

Weights = Literal["float32", "int8", "int4"]
WEIGHTS: Final[tuple[str, ...]] = ("float32", "int8", "int4")

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
INT8_FILE: Final = "int8.safetensors"
_PICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json`. Raises CheckpointError when there is none or it is not a GLM that we know."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a GLM checkpoint with a {CONFIG_FILE}")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}; it is not a model in the Hugging Face layout")
    try:
        values = read_json(folder / CONFIG_FILE)
    except StorageError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / CONFIG_FILE} must hold a JSON object")
    if "quantization_config" in values:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has a quantization_config: already quantised checkpoints cannot be loaded yet; "
            "use the unquantised one and --quantize"
        )
    return ModelConfig.from_hf(values)


def load_model(folder: Path, *, weights: str = "float32") -> GlmForCausalLM:
    """Load a GLM in evaluation mode, in float32 or with its matrices in int8 or int4.

    folder: a bundle or a checkpoint in the Hugging Face layout. An `int8.safetensors` that a build left there is
    used as it is; otherwise the weights are rounded while loading.
    Raises CheckpointError, with the tensor or file at fault.
    """
    if weights not in WEIGHTS:
        raise CheckpointError(f"unknown weights '{weights}'; choose one of: {', '.join(WEIGHTS)}")
    config = load_config(folder)
    if weights == "int8" and (folder / INT8_FILE).is_file():
        model = _empty_model(config)
        tensors = _read_tensors(folder / INT8_FILE)
        _install_int8(model, tensors)
        _assign(model, tensors, str(folder / INT8_FILE))
        return model.eval()
    model = _empty_model(config)
    tensors = {}
    for file in _weight_files(folder):
        for name, tensor in _read_tensors(file).items():
            if tensor.dtype not in _FLOATS:
                raise CheckpointError(f"{file}: {name} has type {tensor.dtype}, which is not a floating-point type")
            tensors[name] = tensor.float()
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]
    _assign(model, tensors, str(folder))
    if weights != "float32":
        quantize_in_place(model, weights)
    return model.eval()


def save_model(model: GlmForCausalLM, folder: Path) -> None:
    """Write `config.json`, `generation_config.json` and float32 `model.safetensors`, each atomically.

    Raises StorageError when the disk refuses.
    """
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    write_tensors(tensors, folder / WEIGHTS_FILE)
    config = model.config.to_hf()
    write_json(folder / CONFIG_FILE, config)
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"], "do_sample": False}
    write_json(folder / "generation_config.json", generation)


def save_int8(model: GlmForCausalLM, folder: Path) -> Path:
    """Write the state of a model already in int8 to `int8.safetensors`. Returns its path."""
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
    else:
        model.lm_head = Int8Linear(*round_to_int8(model.lm_head.weight.detach()))  # type: ignore[assignment]
    for layer in model.model.decoder_layers():
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(block, name, _quantized(linear, weights))
    return model


class _WithoutRandomNumbers(TorchFunctionMode):
    """Leaves new tensors as they are: on the meta device filling them would load a second of compiler for nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.uniform_, torch.Tensor.normal_):
            return args[0]
        return func(*args, **(kwargs or {}))


def _empty_model(config: ModelConfig) -> GlmForCausalLM:
    """The layers with their shapes and no memory, to be given tensors."""
    with torch.device("meta"), _WithoutRandomNumbers():
        return GlmForCausalLM(config)


def _quantized(linear: nn.Linear, weights: str) -> nn.Module:
    group_size = int4_group_size(linear)
    if weights == "int4" and group_size is not None:
        return Int4Linear(linear, group_size)
    bias = None if linear.bias is None else linear.bias.detach()
    return Int8Linear(*round_to_int8(linear.weight.detach()), bias)


def _install_int8(model: GlmForCausalLM, tensors: dict[str, Tensor]) -> None:
    """Put empty int8 layers where `tensors` has int8 weights, and tie the output matrix."""
    if model.config.tie_word_embeddings:
        for part in ("weight", "scale"):
            if f"model.embed_tokens.{part}" in tensors:
                tensors[f"lm_head.{part}"] = tensors[f"model.embed_tokens.{part}"]
    for name, module in list(model.named_modules()):
        if f"{name}.scale" not in tensors or not isinstance(module, nn.Linear | nn.Embedding):
            continue
        parent = model.get_submodule(name.rpartition(".")[0])
        weight = torch.empty(module.weight.shape, dtype=torch.int8, device="meta")
        scale = torch.empty(module.weight.shape[0], device="meta")
        if isinstance(module, nn.Embedding):
            setattr(parent, name.rpartition(".")[2], Int8Embedding(weight, scale))
        else:
            bias = None if module.bias is None else module.bias.detach()
            setattr(parent, name.rpartition(".")[2], Int8Linear(weight, scale, bias))


def _assign(model: GlmForCausalLM, tensors: dict[str, Tensor], source: str) -> None:
    expected = model.state_dict()
    if model.config.tie_word_embeddings and "lm_head.weight" not in tensors and "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if missing := sorted(set(expected) - set(tensors)):
        raise CheckpointError(f"{source}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    if unknown := sorted(set(tensors) - set(expected)):
        raise CheckpointError(f"{source}: the tensor {unknown[0]} is not part of this architecture")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise CheckpointError(
                f"{source}: {name} is {tensor.dtype}{list(tensor.shape)}, {CONFIG_FILE} asks for "
                f"{expected[name].dtype}{list(expected[name].shape)}"
            )
    model.load_state_dict(tensors, assign=True)
    if model.config.tie_word_embeddings and isinstance(model.lm_head, nn.Linear):
        model.lm_head.weight = model.model.embed_tokens.weight


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE)
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise CheckpointError(f"{folder / INDEX_FILE}: weight_map must name a file for each tensor")
        files = sorted(set(names.values()))
        for name in files:
            if PurePath(name).name != name or not name.endswith(".safetensors"):
                raise CheckpointError(f"{folder / INDEX_FILE} names {name!r}, which is not a file of this folder")
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name} is missing; download the checkpoint again")
        return [folder / name for name in files]
    if pickled := next((file for file in sorted(folder.iterdir()) if file.suffix in _PICKLED), None):
        raise CheckpointError(
            f"{pickled} is a pickle, which can run code when it is read, so Open-AutoGLM never opens one; "
            "convert the checkpoint to safetensors first"
        )
    raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; get the checkpoint again") from None


def _read_tensors(file: Path) -> dict[str, Tensor]:
    with _explained(file), safe_open(file, framework="pt", device="cpu") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
