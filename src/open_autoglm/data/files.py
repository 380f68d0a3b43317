# SPDX-License-Identifier: Apache-2.0
"""What a user calls the data -> the files that it stands for: a file, a folder, a pattern, or standard input."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Final

from open_autoglm.errors import DataError
from open_autoglm.plugins.registry import PluginRegistry

EXTENSIONS: Final = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
_PACKED: Final = (".gz", ".gzip", ".zst", ".zstd")
_ASIDE: Final = re.compile(r"(readme|licen[cs]e|dataset_infos?|state|config|changelog)(\.|$)", re.IGNORECASE)
_SPLIT: Final = re.compile(r"(train(?:ing)?|valid(?:ation)?|dev|val|test)(?=[-_.]|$)", re.IGNORECASE)
_SPLIT_NAMES: Final = {"training": "train", "validation": "valid", "dev": "valid", "val": "valid"}


def format_by_name(path: Path) -> str | None:
    """The format that a file's extension says, that of a compressed file too; None for an unknown one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return EXTENSIONS.get(suffixes[-1]) if suffixes else None


def find_files(path: Path) -> list[Path]:
    """The data files that a path stands for, in the order of their names.

    A folder stands for all data files in it and below, but for read-me files, licences and hidden ones; a path with
    `*`, `?` or `[` that does not exist for those that match (`**` for any folders).
    Raises DataError for a folder without data files, and a pattern that matches nothing.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        of_plugins = _read_by_plugins({file.suffix for file in files if format_by_name(file) is None})
        found = [
            file
            for file in files
            if (format_by_name(file) is not None or file.suffix in of_plugins)
            and not _ASIDE.match(file.name)
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not found:
            raise DataError(
                f"{path} is a folder without data files ({', '.join(EXTENSIONS)}); give the data file itself"
            )
        return found
    if any(character in str(path) for character in "*?[") and not path.exists():
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]  # noqa: PTH207
        if not found:
            raise DataError(f"no file matches {path}; check the pattern (quote it, so that the shell leaves it alone)")
        return found
    return [path]


def find_split_files(folder: Path) -> dict[str, Path]:
    """The files of a folder by split, told by their names (`train.jsonl`, `dev-00000-of-00002.parquet`), or nothing.

    Several files of a split come back as a pattern, which `find_files` reads. A folder `data` inside counts too.
    Raises DataError when a split has several files that are not parts of one.
    """
    for place in (folder, folder / "data"):
        found: dict[str, list[Path]] = {}
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            match = _SPLIT.match(file.name)
            if match and file.is_file() and not file.name.startswith("."):
                name = match.group(1).lower()
                found.setdefault(_SPLIT_NAMES.get(name, name), []).append(file)
        if "train" in found:
            return {split: _one(files, place, split) for split, files in found.items()}
    return {}


def _read_by_plugins(suffixes: set[str]) -> set[str]:
    """Those of the suffixes that plugins read."""
    registry = PluginRegistry()
    return {suffix for suffix in suffixes if suffix and registry.reader_of(suffix) is not None}


def _one(files: list[Path], folder: Path, split: str) -> Path:
    if len(files) == 1:
        return files[0]
    stems = {re.sub(r"\d+", "#", file.name) for file in files}
    if len(stems) > 1:
        raise DataError(f"{folder} has two files for the {split} split: {files[0].name} and {files[1].name}")
    return folder / re.sub(r"\d+", "*", glob.escape(files[0].name))
