# SPDX-License-Identifier: Apache-2.0
"""Pushing bundles to a registry and pulling them back: only what is missing, and nothing unverified in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from open_autoglm.bundle.bundle import Bundle, open_bundle, place_folder
from open_autoglm.bundle.image import Blobs, check_image, describe_image, digest_of, read_image
from open_autoglm.bundle.keys import VerifyingKey
from open_autoglm.bundle.manifest import MANIFEST, FileRecord, parse_manifest
from open_autoglm.bundle.registry import Reference, Registry, open_registry
from open_autoglm.bundle.signature import SIGNATURE_FILE, check_signature, parse_signatures
from open_autoglm.errors import BundleError, ConfigurationError, RegistryError, StorageError
from open_autoglm.storage import FolderLock, explained, sha256_of_file

OnProgress = Callable[[int, int], None]
"""Is told how many bytes are done, of how many."""


@dataclass(frozen=True)
class PushOutcome:
    """digest: what names exactly this bundle for all time. sent, skipped: bytes that went, and that were there."""

    reference: Reference
    digest: str
    sent: int
    skipped: int


def push_bundle(
    path: Path | str, reference: Reference, environment: Mapping[str, str], on_progress: OnProgress | None = None
) -> PushOutcome:
    """Verify a bundle and put it into a registry; blobs that are there are not sent again.

    The tag names the new bundle only when all of it is there. environment: where credentials are.
    Raises BundleError, RegistryError, ConfigurationError or StorageError.
    """
    if reference.is_digest:
        raise ConfigurationError(f"{reference}: a digest cannot be pushed to; give a tag")
    bundle = open_bundle(path)
    content, blobs = describe_image(bundle)
    registry = open_registry(reference, environment)
    sent = skipped = 0
    total = sum(file.stat().st_size for file in blobs.values())
    try:
        for digest, file in blobs.items():
            size = file.stat().st_size
            if registry.has_blob(digest, size):
                skipped += size
            else:
                registry.write_blob(digest, size, file)
                sent += size
            if on_progress is not None:
                on_progress(sent + skipped, total)
        registry.write_manifest(reference.tag, content)
    finally:
        registry.close()
    return PushOutcome(reference, digest_of(content), sent, skipped)


def pull_bundle(
    reference: Reference,
    out: Path,
    environment: Mapping[str, str],
    *,
    key: VerifyingKey | None = None,
    on_progress: OnProgress | None = None,
) -> Bundle:
    """Get a bundle from a registry into the folder `out`, which appears when all of it is verified.

    What was interrupted goes on where it stopped, in a hidden folder beside `out`. key: who must have signed it, looked
    at before the large files are fetched. Raises ConfigurationError if `out` is there, RegistryError, BundleError (its
    kinds for signatures) or StorageError.
    """
    if out.exists() or out.is_symlink():
        raise ConfigurationError(f"{out} is there already; give a new folder with --out")
    if not out.name or out.name == "..":
        raise ConfigurationError(f"'{out}' is not a name for a folder; give one with --out")
    work = out.with_name(f".{out.name}.pulling")
    with FolderLock(work):
        registry = open_registry(reference, environment)
        try:
            bundle = _Pull(registry, reference, work, on_progress).run(out, key)
        finally:
            registry.close()
    shutil.rmtree(work, ignore_errors=True)
    return bundle


class _Pull:
    def __init__(self, registry: Registry, reference: Reference, work: Path, on_progress: OnProgress | None) -> None:
        self._registry, self._reference, self._work, self._on_progress = registry, reference, work, on_progress

    def run(self, out: Path, key: VerifyingKey | None) -> Bundle:
        """Everything, the small and decisive parts first."""
        content = self._registry.read_manifest(self._reference.tag)
        if self._reference.is_digest and digest_of(content) != self._reference.tag:
            raise RegistryError(f"{self._reference}: the registry gave something else than this digest; do not use it")
        blobs = read_image(content, self._reference)
        self._check_room(blobs)
        described = self._fetch(blobs.configuration).read_bytes()
        if key is not None:
            signature = blobs.files.get(SIGNATURE_FILE)
            signatures = None
            if signature is not None:
                signatures = parse_signatures(
                    self._fetch(signature).read_bytes(), f"{self._reference}: {SIGNATURE_FILE}"
                )
            check_signature(signatures, described, key, self._reference)
        manifest = parse_manifest(described, f"{self._reference}: {MANIFEST}")
        check_image(blobs, manifest, self._reference)
        done, total = 0, sum(record.size for record in blobs.files.values())
        for record in blobs.files.values():
            self._fetch(record)
            done += record.size
            if self._on_progress is not None:
                self._on_progress(done, total)
        return self._assemble(blobs, out, key)

    def _fetch(self, record: FileRecord) -> Path:
        """The blob in the work folder, of the right hash."""
        file = self._work / "blobs" / record.sha256
        with explained(file, "write"):
            file.parent.mkdir(exist_ok=True)
            if file.is_symlink() or (file.exists() and not file.is_file()):
                raise StorageError(f"{file} is not a file; remove {self._work} and pull again")
        for is_last in (False, True):
            begun = file.stat().st_size if file.exists() else 0
            if begun > record.size:
                file.unlink()
                begun = 0
            if begun < record.size or not file.exists():
                self._registry.read_blob(record.sha256, record.size, file)
            if file.exists() and file.stat().st_size == record.size and sha256_of_file(file) == record.sha256:
                return file
            file.unlink(missing_ok=True)
            if is_last or begun == 0:  # what was there from before may have been at fault: once more from the beginning
                break
        raise RegistryError(
            f"{self._reference}: the registry gave other bytes than sha256:{record.sha256}; do not use it"
        )

    def _check_room(self, blobs: Blobs) -> None:
        """A manifest can claim any size; what cannot fit is not begun."""
        needed = sum({record.sha256: record.size for record in blobs.files.values()}.values())
        with explained(self._work, "read"):
            here = sum(path.stat().st_size for path in self._work.rglob("*") if path.is_file())
            free = shutil.disk_usage(self._work).free
        if needed > free + here:
            raise StorageError(
                f"{self._reference} takes {needed / 1e6:.0f} MB, and {self._work.parent} has {free / 1e6:.0f} MB free; "
                "choose another disk with --out"
            )

    def _assemble(self, blobs: Blobs, out: Path, key: VerifyingKey | None) -> Bundle:
        staging = self._work / "bundle"
        shutil.rmtree(staging, ignore_errors=True)
        uses = [record.sha256 for record in blobs.files.values()]
        with explained(staging, "write"):
            for index, (name, record) in enumerate(blobs.files.items()):
                target = staging / name
                target.parent.mkdir(parents=True, exist_ok=True)
                blob = self._work / "blobs" / record.sha256
                if record.sha256 in uses[index + 1 :]:
                    shutil.copyfile(blob, target)
                else:
                    blob.replace(target)
                target.chmod(0o644)
                with target.open("rb+") as file:
                    os.fsync(file.fileno())
        try:
            bundle = open_bundle(staging, key=key)
        except BundleError:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        place_folder(staging, out)
        return Bundle(out, bundle.manifest, bundle.signatures)
