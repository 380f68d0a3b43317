# SPDX-License-Identifier: Apache-2.0
"""Writing a bundle in one step, and opening one only if it is whole, unchanged and contains nothing else."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from open_autoglm.bundle.manifest import BundleManifest, FileRecord
from open_autoglm.errors import BundleError
from open_autoglm.storage import explained, sha256_of_file, sync_folder, write_json
from open_autoglm.task import Task

MANIFEST = "bundle.json"
_MAX_MANIFEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder and its manifest."""

    path: Path
    manifest: BundleManifest

    @property
    def task(self) -> Task:
        """What the model was built for."""
        return Task.from_dict(self.manifest.task)

    @property
    def size(self) -> int:
        """Bytes of all listed files."""
        return sum(record.size for record in self.manifest.files.values())


def write_bundle(folder: Path, staging: Path, manifest: BundleManifest) -> Bundle:
    """Turn the files under `staging` into the bundle `folder`, listing and hashing each.

    The folder appears by one rename, after everything in it is on disk; an older bundle there is replaced.
    Raises StorageError when the disk refuses, BundleError when `staging` holds anything but plain files.
    """
    files: dict[str, FileRecord] = {}
    for name in sorted(_plain_files(staging)):
        if name == MANIFEST:
            continue
        path = staging / name
        with explained(path, "write"), path.open("rb+") as file:
            os.fsync(file.fileno())
        files[name] = FileRecord(size=path.stat().st_size, sha256=sha256_of_file(path))
    complete = manifest.model_copy(update={"files": files})
    write_json(staging / MANIFEST, complete.model_dump(mode="json"))
    with explained(folder, "write"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        retired = folder.with_name(f".{folder.name}.retired")
        shutil.rmtree(retired, ignore_errors=True)
        if folder.exists():
            folder.rename(retired)
        staging.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(retired, ignore_errors=True)
    return Bundle(folder, complete)


def open_bundle(path: Path | str, *, verify: bool = True) -> Bundle:
    """Open a bundle folder.

    verify: also compare every file's SHA-256 (one read of the folder); sizes and names are always compared.
    Raises BundleError if it is not a bundle, names a file outside itself, holds a symbolic link or a file that
    `bundle.json` does not list, lacks one that it does, or differs from it in a single bit.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    listed = dict(manifest.files)
    for name in listed:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name:
            raise BundleError(f"{folder}: {MANIFEST} names a file outside the bundle ({name!r}); do not use it")
    present = _plain_files(folder) - {MANIFEST}
    if unlisted := sorted(present - set(listed)):
        raise BundleError(
            f"{folder}: {unlisted[0]} is not listed in {MANIFEST}; remove it, or get the bundle again from its source"
        )
    if missing := sorted(set(listed) - present):
        raise BundleError(f"{folder}: {missing[0]} is missing; get the bundle again from its source")
    for name, record in listed.items():
        file = folder / name
        if file.stat().st_size != record.size or (verify and sha256_of_file(file) != record.sha256):
            raise BundleError(
                f"{folder}: {name} is not the file that was written (its content does not match {MANIFEST}); "
                "get the bundle again from its source"
            )
    for name, quantization in manifest.quantizations.items():
        if quantization.file not in listed:
            raise BundleError(f"{folder}: {MANIFEST} offers {name} weights in {quantization.file}, which is not listed")
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> BundleManifest:
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder; give the path of a bundle, such as runs/NAME/bundle")
    file = folder / MANIFEST
    if not file.is_file() or file.is_symlink():
        hint = f" (did you mean {folder / 'bundle'}?)" if (folder / "bundle" / MANIFEST).is_file() else ""
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}{hint}")
    if file.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{file} is larger than {_MAX_MANIFEST_BYTES // 1024 // 1024} MiB; it is not ours")
    try:
        return BundleManifest.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{file}: {where}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON ({error})") from None
    except OSError as error:
        raise BundleError(f"cannot read {file}: {error.strerror}") from None


def _plain_files(folder: Path) -> set[str]:
    names: set[str] = set()
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BundleError(f"{folder}: {path.relative_to(folder)} is a link or a special file; remove it")
            if stat.S_ISREG(mode):
                names.add(path.relative_to(folder).as_posix())
    return names
