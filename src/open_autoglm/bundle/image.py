# SPDX-License-Identifier: Apache-2.0
"""A bundle as an OCI image manifest, and back: which blob is which file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, StrictInt, ValidationError

from open_autoglm.bundle.bundle import Bundle, check_names
from open_autoglm.bundle.manifest import MANIFEST, BundleManifest, FileRecord
from open_autoglm.bundle.manifest import MAX_MANIFEST_BYTES as MAX_BUNDLE_JSON
from open_autoglm.bundle.registry import MANIFEST_TYPE, MAX_MANIFEST_BYTES
from open_autoglm.bundle.signature import UNLISTED_FILES
from open_autoglm.errors import BundleError, RegistryError
from open_autoglm.storage import sha256_of_file

CONFIGURATION_TYPE: Final = "application/vnd.open-autoglm.bundle.v2+json"
_FILE_TYPE: Final = "application/octet-stream"
_TITLE: Final = "org.opencontainers.image.title"
_LICENSES: Final = "org.opencontainers.image.licenses"
_MAX_SIGNATURE: Final = 64 * 1024 * 1024


class _Descriptor(BaseModel):
    mediaType: str  # noqa: N815 - the format's own name
    digest: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")]
    size: Annotated[StrictInt, Field(ge=0, lt=1 << 62)]
    annotations: dict[str, str] = Field(default_factory=dict)


class _Image(BaseModel):
    """Other fields are for other tools."""

    schemaVersion: Literal[2]  # noqa: N815
    config: _Descriptor
    layers: list[_Descriptor]


@dataclass(frozen=True)
class Blobs:
    """What a manifest promises. configuration: `bundle.json`. files: by name, `bundle.json` among them."""

    configuration: FileRecord
    files: Mapping[str, FileRecord]


def describe_image(bundle: Bundle) -> tuple[bytes, dict[str, Path]]:
    """The manifest of a verified bundle, and where each of its blobs lies, by SHA-256. Equal bundles, equal bytes."""
    records = {MANIFEST: _record(bundle.path / MANIFEST), **bundle.manifest.files}
    for name in sorted(UNLISTED_FILES):
        if (bundle.path / name).is_file():
            records[name] = _record(bundle.path / name)
    annotations = {_TITLE: bundle.manifest.name}
    if bundle.manifest.license is not None:
        annotations[_LICENSES] = bundle.manifest.license
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": CONFIGURATION_TYPE,
        "config": _descriptor(records[MANIFEST], CONFIGURATION_TYPE),
        "layers": [
            {**_descriptor(record, _FILE_TYPE), "annotations": {_TITLE: name}} for name, record in records.items()
        ],
        "annotations": annotations,
    }
    encoded = json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return encoded, {record.sha256: bundle.path / name for name, record in records.items()}


def read_image(content: bytes, where: object) -> Blobs:
    """Read a manifest of unknown origin. Raises RegistryError when it is not that of a bundle."""
    if len(content) > MAX_MANIFEST_BYTES:
        raise RegistryError(f"{where}: the manifest is larger than 4 MiB; it is not that of a bundle")
    try:
        image = _Image.model_validate(json.loads(content))
    except (ValidationError, ValueError, RecursionError):
        raise RegistryError(f"{where} is not the manifest of an OCI artifact") from None
    if image.config.mediaType != CONFIGURATION_TYPE:
        raise RegistryError(f"{where} is not a bundle, but {image.config.mediaType[:100]!r}")
    files: dict[str, FileRecord] = {}
    for layer in image.layers:
        name = layer.annotations.get(_TITLE, "")
        if name in files:
            raise RegistryError(f"{where}: the manifest names {name!r} twice")
        files[name] = FileRecord(size=layer.size, sha256=layer.digest.removeprefix("sha256:"))
    configuration = FileRecord(size=image.config.size, sha256=image.config.digest.removeprefix("sha256:"))
    if files.get(MANIFEST) != configuration or configuration.size > MAX_BUNDLE_JSON:
        raise RegistryError(f"{where}: the manifest has no {MANIFEST}, so it is not that of a bundle")
    if any(files[name].size > _MAX_SIGNATURE for name in UNLISTED_FILES & files.keys()):
        raise RegistryError(f"{where}: a signature is larger than any signature")
    return Blobs(configuration, files)


def check_image(blobs: Blobs, manifest: BundleManifest, where: object) -> None:
    """Check that the blobs are exactly the files of the bundle. Raises RegistryError or BundleError."""
    try:
        check_names(manifest.files, where)
    except BundleError as error:
        raise RegistryError(str(error)) from None
    promised = {name: record for name, record in blobs.files.items() if name not in UNLISTED_FILES | {MANIFEST}}
    if promised != dict(manifest.files):
        different = {name for name, _ in promised.items() ^ manifest.files.items()}
        raise RegistryError(f"{where}: the manifest and {MANIFEST} do not agree on {min(different)!r}; do not use it")


def _record(path: Path) -> FileRecord:
    return FileRecord(size=path.stat().st_size, sha256=sha256_of_file(path))


def _descriptor(record: FileRecord, media_type: str) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": f"sha256:{record.sha256}", "size": record.size}


def digest_of(content: bytes) -> str:
    """The digest of a manifest, as references name it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()
