# SPDX-License-Identifier: Apache-2.0
"""Which folder a user means by a model, and what the model calls itself, without loading it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from open_autoglm.errors import BundleError, StorageError
from open_autoglm.storage import read_json


def find_model(model: str | Path) -> Path:
    """The folder meant by a path or by the NAME of `runs/NAME`. Raises BundleError when there is none."""
    path = Path(model)
    if path.is_dir():
        if not (path / "bundle.json").is_file() and (path / "bundle" / "bundle.json").is_file():
            return path / "bundle"
        return path
    named = Path("runs") / path / "bundle"
    if len(path.parts) == 1 and path.name not in ("", "..") and named.is_dir():
        return named
    raise BundleError(
        f"there is no model '{model}': give the folder of a bundle or of a GLM checkpoint, or the NAME of runs/NAME"
    )


def name_of_model(folder: Path) -> str:
    """What the model in a folder calls itself: a bundle's own name, or the folder's."""
    try:
        name = read_json(folder / "bundle.json").get("name")
    except (StorageError, AttributeError):
        name = None
    return name if isinstance(name, str) and name else folder.resolve().name


def version_of_model(folder: Path) -> str | None:
    """16 hexadecimal digits of a bundle, whose `bundle.json` has the hash of every file; None for what is no bundle."""
    try:
        return hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def size_of_model(folder: Path) -> int:
    """Bytes of the files in a model's folder."""
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError:
        return 0
