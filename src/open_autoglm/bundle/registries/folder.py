# SPDX-License-Identifier: Apache-2.0
"""A folder as a registry, in the OCI image layout, for shared disks and sticks.

Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle.registry import MANIFEST_TYPE, MAX_MANIFEST_BYTES
from open_autoglm.errors import RegistryError
from open_autoglm.storage import FolderLock, explained, replacing, write_atomic

_LAYOUT: Final = '{"imageLayoutVersion":"1.0.0"}'
_NAME: Final = "org.opencontainers.image.ref.name"
_INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
_BLOCK: Final = 4 * 1024 * 1024


class FolderRegistry:
    """One repository in a folder, made when it is first written to. Several may write at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has_blob(self, digest: str, size: int) -> bool:
        """Blobs appear by a rename, whole; one of another size was cut by hand and counts as missing."""
        path = self._blob(digest)
        with explained(path, "read"):
            return path.is_file() and path.stat().st_size == size

    def read_blob(self, digest: str, size: int, file: Path) -> None:
        """Copies what `file` lacks of it."""
        path = self._blob(digest)
        if not self.has_blob(digest, size):
            raise RegistryError(f"{self._folder} has no whole blob sha256:{digest}; push the bundle again")
        with explained(file, "write"), path.open("rb") as source, file.open("ab") as copy:
            source.seek(copy.tell())
            left = size - copy.tell()
            while left > 0 and (block := source.read(min(_BLOCK, left))):
                copy.write(block)
                left -= len(block)
        if left > 0:
            raise RegistryError(f"{path} is cut off: {left} of {size} bytes are missing; push the bundle again")

    def write_blob(self, digest: str, size: int, file: Path) -> None:
        """Copies, and renames when the hash of the copy is right."""
        with explained(file, "read"), file.open("rb") as source, replacing(self._blob(digest)) as temporary:
            found = hashlib.sha256()
            with temporary.open("wb") as copy:
                while block := source.read(_BLOCK):
                    found.update(block)
                    copy.write(block)
            if found.hexdigest() != digest:
                raise RegistryError(f"{file} changed while it was copied; push again")

    def read_manifest(self, tag: str) -> bytes:
        """By its tag in `index.json`, or as a blob by its digest."""
        digest = tag if tag.startswith("sha256:") else self._tagged(tag)
        path = self._blob(digest.removeprefix("sha256:"))
        if not path.is_file():
            raise RegistryError(f"{self._folder} has no bundle {tag}; push it first")
        with explained(path, "read"), path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            raise RegistryError(f"{path} is not what was pushed; push the bundle again")
        return content

    def write_manifest(self, tag: str, content: bytes) -> None:
        """The manifest becomes a blob, then `index.json` names it."""
        digest = hashlib.sha256(content).hexdigest()
        with FolderLock(self._folder):
            index = self._index()
            entry: dict[str, Any] = {"mediaType": MANIFEST_TYPE, "digest": f"sha256:{digest}", "size": len(content)}
            kept = [item for item in index["manifests"] if (item.get("annotations") or {}).get(_NAME) != tag]
            if not tag.startswith("sha256:"):
                entry["annotations"] = {_NAME: tag}
            write_atomic(self._blob(digest), content)
            write_atomic(self._folder / "oci-layout", _LAYOUT)
            index["manifests"] = [*kept, entry]
            write_atomic(self._folder / "index.json", json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Nothing is held."""

    def _tagged(self, tag: str) -> str:
        tags = {(item.get("annotations") or {}).get(_NAME): item.get("digest") for item in self._index()["manifests"]}
        digest = tags.get(tag)
        if not isinstance(digest, str) or not digest.startswith("sha256:") or not digest[7:].isalnum():
            known = ", ".join(sorted(str(name) for name in tags if name)) or "nothing"
            raise RegistryError(f"{self._folder} has no bundle '{tag}'; it has: {known}")
        return digest

    def _index(self) -> dict[str, Any]:
        path = self._folder / "index.json"
        if not path.exists():
            return {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": []}
        with explained(path, "read"), path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        try:
            index = json.loads(content)
            if isinstance(index, dict) and all(isinstance(item, dict) for item in index["manifests"]):
                return index
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise RegistryError(f"{path} is not an index of the OCI image layout; choose another folder")

    def _blob(self, digest: str) -> Path:
        return self._folder / "blobs" / "sha256" / digest
