# SPDX-License-Identifier: Apache-2.0
"""Writing a bundle in one step, and opening one only if it is whole, unchanged and contains nothing else."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from open_autoglm.bundle.keys import SigningKey, VerifyingKey
from open_autoglm.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, BundleManifest, FileRecord, parse_manifest
from open_autoglm.bundle.signature import (
    UNLISTED_FILES,
    SignatureFile,
    check_signature,
    read_signatures,
    write_signature,
)
from open_autoglm.errors import BundleError
from open_autoglm.storage import explained, sha256_of_file, sync_folder, write_json
from open_autoglm.task import Task


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder and its manifest.

    signatures: as they lie there; who opened it knows which were checked.
    """

    path: Path
    manifest: BundleManifest
    signatures: SignatureFile | None = None

    @property
    def task(self) -> Task:
        """What the model was built for."""
        return self.manifest.built_for

    @property
    def size(self) -> int:
        """Bytes of all listed files."""
        return sum(record.size for record in self.manifest.files.values())


def write_bundle(folder: Path, staging: Path, manifest: BundleManifest) -> Bundle:
    """Turn the files under `staging` into the bundle `folder`, listing and hashing each.

    The folder appears by one rename, after everything in it is on disk; an older bundle there is replaced, and with
    it its signature. The same files and manifest give the same bytes.
    Raises StorageError when the disk refuses, BundleError when `staging` holds anything but plain files.
    """
    files: dict[str, FileRecord] = {}
    for name in sorted(_plain_files(staging) - {MANIFEST} - UNLISTED_FILES):
        path = staging / name
        with explained(path, "write"), path.open("rb+") as file:
            os.fsync(file.fileno())
        files[name] = FileRecord(size=path.stat().st_size, sha256=sha256_of_file(path))
    complete = manifest.model_copy(update={"files": files})
    complete.check_references(folder)
    with explained(staging, "write"):
        for name in UNLISTED_FILES:
            (staging / name).unlink(missing_ok=True)
    write_json(staging / MANIFEST, complete.model_dump(mode="json"))
    place_folder(staging, folder)
    return Bundle(folder, complete)


def place_folder(staging: Path, folder: Path) -> None:
    """Give a finished folder its name by one rename; an older one of that name goes. Raises StorageError."""
    with explained(folder, "write"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        retired = folder.with_name(f".{folder.name}.retired")
        shutil.rmtree(retired, ignore_errors=True)
        if folder.exists():
            folder.rename(retired)
        staging.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(retired, ignore_errors=True)


def open_bundle(path: Path | str, *, verify: bool = True, key: VerifyingKey | None = None) -> Bundle:
    """Open a bundle folder.

    verify: also compare every file's SHA-256 (one read of the folder); sizes and names are always compared.
    key: whose signature the bundle must carry; looked at before anything that it vouches for.
    Raises BundleError if it is not a bundle, names a file outside itself, holds a symbolic link or a file that
    `bundle.json` does not list, lacks one that it does, or differs from it in a single bit; with a key also
    UnsignedBundleError, WrongKeyError or SignatureMismatchError.
    """
    folder = Path(path)
    content = _read_manifest(folder)
    signatures = read_signatures(folder)
    if key is not None:
        check_signature(signatures, content, key, folder)
    manifest = parse_manifest(content, folder / MANIFEST)
    check_names(manifest.files, folder)
    _compare_listing(folder, manifest.files)
    for name, record in manifest.files.items():
        file = folder / name
        with explained(file, "read"):
            is_same = file.stat().st_size == record.size and (not verify or sha256_of_file(file) == record.sha256)
        if not is_same:
            raise BundleError(
                f"{folder}: {name} is not the file that was written (its content does not match {MANIFEST}); "
                "get the bundle again from its source"
            )
    manifest.check_references(folder)
    return Bundle(folder, manifest, signatures)


def sign_bundle(path: Path | str, key: SigningKey) -> Bundle:
    """Verify a bundle and put the key's signature into its folder. Raises BundleError or StorageError."""
    bundle = open_bundle(path)
    signatures = write_signature(bundle.path, _read_manifest(bundle.path), key)
    return Bundle(bundle.path, bundle.manifest, signatures)


def check_names(names: Iterable[str], where: object) -> None:
    """Raise BundleError for a name that leads out of the bundle, or that no bundle has. where: for the message."""
    for name in names:
        pure = PurePosixPath(name)
        is_outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or str(pure) != name or name == "."
        if is_outside or not name.isprintable():
            raise BundleError(f"{where}: {MANIFEST} names a file outside the bundle ({name!r}); do not use it")
        if name == MANIFEST or name in UNLISTED_FILES:
            raise BundleError(f"{where}: {MANIFEST} lists {name}, which cannot be listed; do not use it")


def _read_manifest(folder: Path) -> bytes:
    with explained(folder, "read"):
        if not folder.is_dir():
            raise BundleError(f"{folder} is not a folder; give the path of a bundle, such as runs/NAME/bundle")
        file = folder / MANIFEST
        if file.is_symlink() or not file.is_file():
            hint = f" (did you mean {folder / 'bundle'}?)" if (folder / "bundle" / MANIFEST).is_file() else ""
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}{hint}")
    with explained(file, "read"), file.open("rb") as opened:
        return opened.read(MAX_MANIFEST_BYTES + 1)


def _compare_listing(folder: Path, listed: Iterable[str]) -> None:
    """The folder holds the listed files, those that cannot be listed, and nothing else: no link, no empty folder."""
    wanted = set(listed)
    folders = {parent.as_posix() for name in wanted for parent in PurePosixPath(name).parents}
    allowed = wanted | {MANIFEST} | UNLISTED_FILES
    found: set[str] = set()
    found_folders = {"."}
    for inner in [".", *sorted(folders - {"."})]:  # a folder comes before those in it
        if inner not in found_folders:
            continue  # it is missing, and so are the files in it
        with explained(folder / inner, "read"), os.scandir(folder / inner) as entries:
            for entry in entries:
                name = entry.name if inner == "." else f"{inner}/{entry.name}"
                is_folder = entry.is_dir(follow_symlinks=False)
                if not is_folder and not entry.is_file(follow_symlinks=False):
                    raise BundleError(f"{folder}: {name!r} is a link or a special file; remove it")
                if name not in (folders if is_folder else allowed):
                    raise BundleError(
                        f"{folder}: {_shown(name)} is not listed in {MANIFEST}; remove it, or get the bundle again "
                        "from its source"
                    )
                (found_folders if is_folder else found).add(name)
    if missing := sorted(wanted - found):
        raise BundleError(f"{folder}: {missing[0]} is missing; get the bundle again from its source")


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _plain_files(folder: Path) -> set[str]:
    names: set[str] = set()
    with explained(folder, "read"):
        for root, folders, files in os.walk(folder, onerror=_reraise):
            for name in (*folders, *files):
                path = Path(root) / name
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise BundleError(f"{folder}: {path.relative_to(folder)} is a link or a special file; remove it")
                if stat.S_ISREG(mode):
                    names.add(path.relative_to(folder).as_posix())
    return names


def _reraise(error: OSError) -> None:
    raise error
