# SPDX-License-Identifier: Apache-2.0
"""Where bundles are kept for others: one small interface over content-addressed storage, and how a place is written.

A bundle becomes an OCI image manifest whose configuration is `bundle.json` and whose layers are its files as they are,
each a blob under its SHA-256, so that other tools for OCI artifacts read it too. A tag names a manifest.
Source: https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final, Protocol

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
PLUGIN_GROUP: Final = "open_autoglm.registries"
"""Entry points of other packages: the name is a scheme, the object takes a `Reference` and an environment."""
DEFAULT_TAG: Final = "latest"
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")


@dataclass(frozen=True)
class Reference:
    """A bundle's place: `oci://host/team/snips:1.0`, `s3://bucket/models/snips:1.0`, `path/of/folder:1.0`.

    place: without scheme and tag. tag: or the manifest's own digest, `sha256:…`, which no registry can exchange.
    """

    scheme: str
    place: str
    tag: str = DEFAULT_TAG

    @property
    def is_digest(self) -> bool:
        """Whether it names exactly one manifest for all time."""
        return self.tag.startswith("sha256:")

    def __str__(self) -> str:
        place = self.place if self.scheme == "folder" else f"{self.scheme}://{self.place}"
        return f"{place}{'@' if self.is_digest else ':'}{self.tag}"


class Registry(Protocol):
    """A store of blobs and manifests of one repository. Everything raises RegistryError in words for people."""

    def has_blob(self, digest: str, size: int) -> bool:
        """Whether the blob is there, whole. digest: SHA-256 in hexadecimal digits."""
        ...

    def read_blob(self, digest: str, size: int, file: Path) -> None:
        """Make `file`, which may hold the beginning of the blob already, whole. Who asks checks the hash."""
        ...

    def write_blob(self, digest: str, size: int, file: Path) -> None:
        """Store a blob; afterwards `has_blob` is true."""
        ...

    def read_manifest(self, tag: str) -> bytes:
        """The manifest under a tag or digest, at most 4 MiB."""
        ...

    def write_manifest(self, tag: str, content: bytes) -> None:
        """Put a manifest, all blobs of which are there, under a tag."""
        ...

    def close(self) -> None:
        """Let connections go."""
        ...


OpenRegistry = Callable[[Reference, Mapping[str, str]], Registry]


def parse_reference(text: str) -> Reference:
    """Read a place. Raises ConfigurationError that says how one is written."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "folder", text
    elif scheme == "file":
        scheme = "folder"
    elif not _SCHEME.fullmatch(scheme):
        raise _fault(text, f"'{scheme}' is no scheme")
    place, at, digest = rest.partition("@")
    if at:
        tag = digest
        if not _DIGEST.fullmatch(tag):
            raise _fault(text, "after @ comes sha256: and 64 hexadecimal digits")
    else:
        place, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:  # the colon of a port, or of nothing
            place, tag = rest, DEFAULT_TAG
        if not _TAG.fullmatch(tag):
            raise _fault(text, f"'{tag}' is no tag: letters, digits, dots, dashes and underscores")
    if not place.strip("/") or not text.isprintable():
        raise _fault(text, "it names no place")
    return Reference(scheme, place, tag)


def open_registry(reference: Reference, environment: Mapping[str, str]) -> Registry:
    """The registry that a reference means. environment: where credentials are, which are never shown.

    Raises ConfigurationError for a scheme that is not known, or whose package is not installed.
    """
    known = _openers()
    opener = known.get(reference.scheme)
    if opener is None:
        for plugin in entry_points(group=PLUGIN_GROUP, name=reference.scheme):
            opener = plugin.load()
    if opener is None:
        hint = did_you_mean(reference.scheme, list(known))
        raise ConfigurationError(f"no registry is known for {reference.scheme}://{hint}")
    return opener(reference, environment)


def _openers() -> dict[str, OpenRegistry]:
    def folder(reference: Reference, _: Mapping[str, str]) -> Registry:
        from open_autoglm.bundle.registries.folder import FolderRegistry

        return FolderRegistry(Path(reference.place))

    def oci(reference: Reference, environment: Mapping[str, str]) -> Registry:
        from open_autoglm.bundle.registries.oci import open_oci_registry

        return open_oci_registry(reference, environment)

    def s3(reference: Reference, environment: Mapping[str, str]) -> Registry:
        from open_autoglm.bundle.registries.s3 import open_s3_registry

        return open_s3_registry(reference, environment)

    return {"folder": folder, "oci": oci, "oci+http": oci, "s3": s3}


def _fault(text: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{text!r} is not a place for bundles: {reason}; write oci://HOST/NAME:TAG, s3://BUCKET/NAME:TAG or FOLDER:TAG"
    )
