# SPDX-License-Identifier: Apache-2.0
"""The files around exported weights that transformers and its like read: configuration, tokenizer, licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from open_autoglm.bundle.huggingface import CHAT_TEMPLATE_FILE, TOKENIZER_FILE
from open_autoglm.chat.template import END_OF_TEXT
from open_autoglm.errors import StorageError
from open_autoglm.export.source import Source
from open_autoglm.models.model_folder import CONFIG_FILE, GENERATION_CONFIG_FILE
from open_autoglm.storage import explained, read_json, write_atomic, write_json

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_CARD: Final = "README.md"
_PLOTS: Final = "plots"


def write_configuration(source: Source, folder: Path, dtype: str) -> None:
    """`config.json` of the transformers class that computes the model, and `generation_config.json`."""
    write_json(folder / CONFIG_FILE, {**source.config.to_hf(), "dtype": dtype})
    generation = _object_in(source.folder / GENERATION_CONFIG_FILE)
    generation.pop("transformers_version", None)
    generation["eos_token_id"] = list(source.config.eos_token_ids)
    if source.config.pad_token_id is not None:
        generation["pad_token_id"] = source.config.pad_token_id
    write_json(folder / GENERATION_CONFIG_FILE, generation)


def write_tokenizer_files(source: Source, folder: Path) -> list[str]:
    """`tokenizer.json`, whatever file the tokenizer was in, its settings and the template. Returns notes for users."""
    tokenizer = source.tokenizer
    if tokenizer is None:
        return ["the model has no tokenizer, so neither has the export"]
    write_atomic(folder / TOKENIZER_FILE, tokenizer.to_str())
    settings = _object_in(source.folder / _TOKENIZER_CONFIG)
    # The class may be code of the model's repository, which is not run; the file alone says all.
    for name in ("auto_map", "added_tokens_decoder", "chat_template", "extra_special_tokens"):
        settings.pop(name, None)
    special = [item["content"] for item in json.loads(tokenizer.to_str())["added_tokens"] if item["special"]]
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings.setdefault("model_max_length", source.config.max_context)
    settings["additional_special_tokens"] = special
    for name, token in (("eos_token", _end(source, tokenizer)), ("pad_token", _padding(source, tokenizer))):
        if not isinstance(settings.get(name), str) and token is not None:
            settings[name] = token
    write_json(folder / _TOKENIZER_CONFIG, settings)
    if source.template is None:
        return ["the model has no chat template, so neither has the export"]
    write_atomic(folder / CHAT_TEMPLATE_FILE, source.template)
    return []


def copy_papers(source: Source, folder: Path) -> None:
    """The licence, and a bundle's model card with its plots."""
    names = [file.name for file in sorted(source.folder.iterdir()) if file.name.upper().startswith("LICEN")]
    if source.is_bundle:
        names += [_CARD]
    for name in names:
        if (source.folder / name).is_file():
            with explained(folder / name, "write"):
                shutil.copyfile(source.folder / name, folder / name)
    if source.is_bundle and (source.folder / _PLOTS).is_dir():
        with explained(folder / _PLOTS, "write"):
            shutil.copytree(source.folder / _PLOTS, folder / _PLOTS)


def _object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if there is none."""
    try:
        values = read_json(path) if path.is_file() else {}
    except StorageError:
        return {}
    return values if isinstance(values, dict) else {}


def _end(source: Source, tokenizer: Tokenizer) -> str | None:
    ends = source.config.eos_token_ids
    return tokenizer.id_to_token(ends[0]) if ends else None


def _padding(source: Source, tokenizer: Tokenizer) -> str | None:
    if source.config.pad_token_id is not None:
        return tokenizer.id_to_token(source.config.pad_token_id)
    return END_OF_TEXT if tokenizer.token_to_id(END_OF_TEXT) is not None else None
