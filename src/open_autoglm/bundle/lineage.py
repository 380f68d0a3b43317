# SPDX-License-Identifier: Apache-2.0
"""Where a bundle comes from: the code, the libraries, the time and the models that it was made from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import open_autoglm
from open_autoglm.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Parent, parse_manifest
from open_autoglm.errors import BundleError, ConfigurationError
from open_autoglm.storage import explained, sha256_of_file
from open_autoglm.version import __version__

DATE_VARIABLE: Final = "SOURCE_DATE_EPOCH"
"""Seconds since 1970 that stand for now, so that the same build gives the same bytes.

Source: https://reproducible-builds.org/specs/source-date-epoch/
"""
LIBRARIES: Final = ("torch", "optuna", "tokenizers", "llguidance", "numpy", "dbos", "scikit-learn")
_LAST_SECOND: Final = 253_402_300_799  # of the year 9999
_WEIGHT_FILES: Final = (".safetensors",)
_NAMED_FILES: Final = (".json", ".jinja", ".txt", ".model", *_WEIGHT_FILES)


def fixed_date(environment: Mapping[str, str]) -> datetime | None:
    """The date that SOURCE_DATE_EPOCH fixes, if it does. Raises ConfigurationError if it is not one."""
    text = environment.get(DATE_VARIABLE)
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > _LAST_SECOND:
        raise ConfigurationError(f"{DATE_VARIABLE}={text[:40]!r} is not a number of seconds since 1970")
    return datetime.fromtimestamp(int(text), UTC)


def build_date(environment: Mapping[str, str]) -> datetime:
    """Now, or the date that SOURCE_DATE_EPOCH fixes. Raises ConfigurationError if that is not one."""
    return fixed_date(environment) or datetime.fromtimestamp(int(time.time()), UTC)


def describe_time(seconds: Mapping[str, float], environment: Mapping[str, str]) -> dict[str, Any]:
    """`built` and `seconds`: all of a bundle that depends on the clock. With a fixed date there are no seconds."""
    found: dict[str, Any] = {"built": build_date(environment).isoformat(timespec="seconds")}
    return found if fixed_date(environment) is not None else {**found, "seconds": dict(seconds)}


def describe_code() -> dict[str, str]:
    """The version of this package and one SHA-256 of all its Python sources."""
    root = Path(open_autoglm.__file__).parent
    return {"version": __version__, "sha256": digest_of_files(root, (path for path in root.rglob("*.py")))}


def describe_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """The versions of this package and of the libraries that are installed."""
    found = {"open_autoglm": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_parent(folder: Path) -> Parent:
    """A bundle or checkpoint that a model was made from.

    A bundle is known by its manifest. A checkpoint is known by the hashes of all its weights and settings, which are
    read once for it. Raises BundleError or StorageError when they cannot be read.
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        with explained(manifest, "read"), manifest.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        parent = parse_manifest(content, manifest)
        return Parent(
            name=parent.name, kind="bundle", sha256=hashlib.sha256(content).hexdigest(), license=parent.license
        )
    with explained(folder, "read"):
        files = [path for path in folder.iterdir() if path.is_file() and path.suffix in _NAMED_FILES]
    if not files:
        raise BundleError(f"{folder} has no weights and no settings; it is not the folder of a model")
    return Parent(name=plain_name(folder.resolve().name), kind="checkpoint", sha256=digest_of_files(folder, files))


def digest_of_files(root: Path, files: Iterable[Path]) -> str:
    """One SHA-256 of files: of their names below `root` and their own hashes, in the order of the names."""
    listing = sorted((path.relative_to(root).as_posix(), sha256_of_file(path)) for path in files)
    return hashlib.sha256(json.dumps(listing).encode("ascii")).hexdigest()


def plain_name(name: str) -> str:
    """A folder's name as a bundle can have it: printable, of at most 200 characters."""
    return "".join(character if character.isprintable() else "-" for character in name)[:200] or "model"
