# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of a container in CycloneDX: the model, this package and everything that it needs."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle.bundle import Bundle
from open_autoglm.bundle.container.requirements import PACKAGE, Pinned
from open_autoglm.bundle.manifest import MANIFEST
from open_autoglm.errors import ConfigurationError
from open_autoglm.storage import sha256_of_file, write_atomic
from open_autoglm.version import __version__

SBOM_FILE: Final = "sbom.cdx.json"


def write_sbom(
    path: Path,
    bundle: Bundle,
    packages: Sequence[Pinned],
    *,
    wheel: Path,
    date: datetime,
    hashes: Mapping[str, str],
) -> None:
    """Write CycloneDX 1.6 as JSON. wheel: of this package. hashes: SHA-256 of the wheels that come along, by name.

    The same contents and date give the same bytes. Raises ConfigurationError without the library, StorageError.
    """
    try:
        from cyclonedx import model as parts_model
        from cyclonedx.contrib.license.factories import LicenseFactory
        from cyclonedx.model import bom as bom_model
        from cyclonedx.model import component as component_model
        from cyclonedx.model.component import ComponentType
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
        from packageurl import PackageURL
    except ImportError:
        raise ConfigurationError(
            "a container needs packages that are not here; install them with: pip install 'open-autoglm[package]'"
        ) from None

    # The library's decorators hide its classes' types.
    make_hash: Any = parts_model.HashType
    make_property: Any = parts_model.Property
    make_component: Any = component_model.Component
    make_bom: Any = bom_model.Bom
    make_metadata: Any = bom_model.BomMetaData

    def licenses(text: str | None) -> Any:
        return [] if text is None else [LicenseFactory().make_from_string(text)]

    def sha256(digest: str | None) -> list[Any]:
        return [] if digest is None else [make_hash(alg=parts_model.HashAlgorithm.SHA_256, content=digest)]

    def reference(name: str, version: str) -> str:
        return f"pkg:pypi/{name}@{version}"

    manifest_hash = sha256_of_file(bundle.path / MANIFEST)
    model = make_component(
        name=bundle.manifest.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"bundle:sha256:{manifest_hash}",
        version=manifest_hash[:16],
        description=f"{bundle.manifest.architecture} for {bundle.task.kind.value}",
        hashes=sha256(manifest_hash),
        licenses=licenses(bundle.manifest.license),
        properties=[
            make_property(name=f"open-autoglm:file:{name}", value=f"sha256:{record.sha256}")
            for name, record in bundle.manifest.files.items()
        ],
    )
    server = make_component(
        name=PACKAGE,
        type=ComponentType.APPLICATION,
        bom_ref=reference(PACKAGE, __version__),
        version=__version__,
        purl=PackageURL("pypi", name=PACKAGE, version=__version__),
        hashes=sha256(sha256_of_file(wheel)),
        licenses=licenses("Apache-2.0"),
    )
    libraries = {
        item.name: make_component(
            name=item.name,
            type=ComponentType.LIBRARY,
            bom_ref=reference(item.name, item.version),
            version=item.version,
            description=item.summary,
            purl=PackageURL("pypi", name=item.name, version=item.version),
            hashes=sha256(hashes.get(item.name)),
            licenses=licenses(item.license),
        )
        for item in packages
    }
    identity = hashlib.sha256("\n".join([manifest_hash, *(str(item.purl) for item in libraries.values())]).encode())
    whole = make_component(
        name=f"{bundle.manifest.name}-server", type=ComponentType.CONTAINER, bom_ref="container", version=__version__
    )
    bom = make_bom(
        components=[model, server, *libraries.values()],
        serial_number=uuid.UUID(bytes=identity.digest()[:16], version=4),
        metadata=make_metadata(component=whole, timestamp=date),
    )
    bom.register_dependency(whole, [model, server])
    bom.register_dependency(model)
    needed = {name for item in packages for name in item.needs}
    bom.register_dependency(server, [part for name, part in libraries.items() if name not in needed])
    for item in packages:
        bom.register_dependency(libraries[item.name], [libraries[name] for name in item.needs if name in libraries])
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    write_atomic(path, text + "\n")
