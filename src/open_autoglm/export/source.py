# SPDX-License-Identifier: Apache-2.0
"""What is exported: a verified bundle or a GLM checkpoint, with its tokenizer and its chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.manifest import MANIFEST
from open_autoglm.chat.detection import find_template
from open_autoglm.chat.tokenizer_files import has_tokenizer, load_tokenizer
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.model_folder import load_config


@dataclass(frozen=True)
class Source:
    """A model to export.

    name: for people. tokenizer: None for a checkpoint that has only weights. template: the chat template in Jinja,
    None where there is none. licence: of the bundle, as it says it.
    """

    folder: Path
    name: str
    config: ModelConfig
    tokenizer: Tokenizer | None
    template: str | None
    is_bundle: bool
    licence: str | None = None


def open_source(folder: Path) -> Source:
    """Open a bundle, whose files must be those that were built, or a checkpoint in a layout that we read.

    Raises BundleError or CheckpointError, with the file at fault.
    """
    name, is_bundle, licence = folder.resolve().name, (folder / MANIFEST).is_file(), None
    if is_bundle:
        manifest = open_bundle(folder).manifest
        name, licence = manifest.name, manifest.license
    config = load_config(folder)
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    found = find_template(folder)
    return Source(folder, name, config, tokenizer, None if found is None else found.text, is_bundle, licence)
