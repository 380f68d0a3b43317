# SPDX-License-Identifier: Apache-2.0
"""The folder of a checkpoint in the Hugging Face layout: which files it has, and its `config.json`; without PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Final

from open_autoglm.errors import CheckpointError, StorageError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.hf_config import token_ids_of
from open_autoglm.models.packed_layouts import PackedLayout, read_packed_layout
from open_autoglm.storage import read_json

CONFIG_FILE: Final = "config.json"
GENERATION_CONFIG_FILE: Final = "generation_config.json"
WEIGHTS_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
INT8_FILE: Final = "int8.safetensors"
INT4_FILE: Final = "int4.safetensors"
ROUNDED_FILES: Final = {"int8": INT8_FILE, "int4": INT4_FILE}
"""Rounded weights that a build leaves beside the others, by the name under which an engine asks for them."""
_PICKLED: Final = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json`, and the ends of an answer from `generation_config.json` where that names any.

    Raises CheckpointError when there is none or it is not a GLM that we know.
    """
    return read_config(folder)[0]


def read_config(folder: Path) -> tuple[ModelConfig, PackedLayout | None]:
    """As `load_config`, with how the weights are packed when the checkpoint is quantised."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder of a GLM checkpoint with a {CONFIG_FILE}")
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}; it is not a model in the Hugging Face layout")
    values = _read_object(folder / CONFIG_FILE)
    settings = values.get("quantization_config")
    layout = None if settings is None else read_packed_layout(settings)
    config = ModelConfig.from_hf(values)
    if (folder / GENERATION_CONFIG_FILE).is_file():
        ends = token_ids_of(_read_object(folder / GENERATION_CONFIG_FILE).get("eos_token_id"))
        if ends:
            config = replace(config, eos_token_ids=ends)
    return config, layout


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model, one or many.

    Raises CheckpointError when there are none, when an index names a file outside the folder or one that is missing,
    and when there are only pickles, which are never opened.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        names = _read_object(folder / INDEX_FILE).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
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


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (StorageError, RecursionError) as error:
        reason = str(error) if isinstance(error, StorageError) else f"cannot read {path}: it is nested too deeply"
        raise CheckpointError(reason) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return values
