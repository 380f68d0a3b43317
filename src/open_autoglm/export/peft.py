# SPDX-License-Identifier: Apache-2.0
"""The adapter from which a bundle was merged, as a folder that PEFT loads over the base; without PyTorch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.export.companions import copy_papers, write_tokenizer_files
from open_autoglm.export.destination import new_folder
from open_autoglm.export.source import Source
from open_autoglm.models.mapped_tensors import MappedTensors
from open_autoglm.models.tensor_names import tensor_shapes
from open_autoglm.storage import explained, read_json, write_json

_CONFIG_FILE: Final = "adapter_config.json"
_WEIGHTS_FILE: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_PROMPT: Final = "prompt_embeddings"


def export_peft(source: Source, out: Path, *, base: str | None = None, force: bool = False) -> dict[str, Any]:
    """Write the adapter as the folder `out`, with the tokenizer and the template, and return what was written.

    base: the name or path by which PEFT's users find the base model; what the build was given if None.
    Raises CheckpointError for a model that no adapter was trained for, or whose adapter is of another model,
    ConfigurationError for `out`, StorageError when the disk refuses.
    """
    adapter = find_adapter(source.folder)
    if adapter is None:
        raise CheckpointError(
            f"{source.folder} has no adapter beside it: a build with --base and --adapter leaves one in its train "
            "folder; --format huggingface exports the merged weights"
        )
    settings = read_json(adapter / _CONFIG_FILE)
    if not isinstance(settings, dict):
        raise CheckpointError(f"{adapter / _CONFIG_FILE} must hold a JSON object")
    _check(adapter / _WEIGHTS_FILE, source)
    if base is not None:
        settings["base_model_name_or_path"] = base
    named = settings.get("base_model_name_or_path")
    if not named:
        raise ConfigurationError(f"{adapter / _CONFIG_FILE} does not name the base model; name it with --base")
    size = (adapter / _WEIGHTS_FILE).stat().st_size
    record = {"format": "peft", "model": source.name, "base": named}
    with new_folder(out, source.folder, size, record, force=force) as folder:
        with explained(folder, "write"):
            shutil.copyfile(adapter / _WEIGHTS_FILE, folder / _WEIGHTS_FILE)
        write_json(folder / _CONFIG_FILE, settings)
        notes = write_tokenizer_files(source, folder)
        copy_papers(source, folder)
    return {
        "format": "peft",
        "folder": str(out),
        "base": named,
        "kind": settings.get("peft_type"),
        "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
        "notes": notes,
    }


def find_adapter(folder: Path) -> Path | None:
    """The adapter of a model's folder: in it, or where a build leaves it."""
    places = (folder / "adapter", folder.resolve().parent / "train" / "adapter")
    return next((place for place in places if (place / _CONFIG_FILE).is_file()), None)


def _check(path: Path, source: Source) -> None:
    """Every tensor belongs to a layer of the model and fits it. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; build the model again")
    file = MappedTensors(path)
    file.close()
    shapes = dict(tensor_shapes(source.config))
    ranks: dict[str, set[int]] = {}
    for name, entry in file.entries.items():
        if name == _PROMPT and len(entry.shape) == 2 and entry.shape[1] == source.config.hidden_size:
            continue
        module, letter, rest = name.removeprefix(_PREFIX).rpartition(".lora_")[0], name[-8:-7], name[-7:]
        layer = shapes.get(f"{module}.weight")
        if layer is None or rest != ".weight" or letter not in "AB" or len(entry.shape) != 2:
            raise CheckpointError(f"{path}: {name} belongs to no layer of {source.folder}; is it of another model?")
        outer, rank = (entry.shape[1], entry.shape[0]) if letter == "A" else entry.shape
        if outer != layer[1 if letter == "A" else 0]:
            raise CheckpointError(f"{path}: {name} is {list(entry.shape)}, the layer is {list(layer)}; is it of another model?")  # fmt: skip  # noqa: E501
        ranks.setdefault(module, set()).add(rank)
    if module := next((module for module, found in ranks.items() if len(found) > 1), None):
        raise CheckpointError(f"{path}: the two matrices for {module} do not fit together")
