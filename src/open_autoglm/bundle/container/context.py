# SPDX-License-Identifier: Apache-2.0
"""Writing the folder that `docker build` takes, with the files that run the result."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from open_autoglm.bundle.bundle import Bundle, open_bundle, place_folder
from open_autoglm.bundle.container.dockerfile import API_KEY_VARIABLE, DOCKERIGNORE, KEY_FILE, PORT, dockerfile
from open_autoglm.bundle.container.manifests import Deployment, compose_file, kubernetes_files, secret_name
from open_autoglm.bundle.container.requirements import PACKAGE, Pinned, pin_requirements
from open_autoglm.bundle.container.sbom import SBOM_FILE, write_sbom
from open_autoglm.bundle.container.wheel import newest_symbols, write_wheel
from open_autoglm.bundle.keys import read_verifying_key
from open_autoglm.bundle.lineage import build_date
from open_autoglm.bundle.manifest import MANIFEST
from open_autoglm.bundle.signature import UNLISTED_FILES
from open_autoglm.errors import ConfigurationError, StorageError
from open_autoglm.storage import explained, sha256_of_file, write_atomic
from open_autoglm.version import __version__

# What the C and C++ libraries of Debian's releases offer, the older release first.
_RELEASES: Final = {
    "bookworm": {"GLIBC": (2, 36), "GLIBCXX": (3, 4, 30)},
    "trixie": {"GLIBC": (2, 41), "GLIBCXX": (3, 4, 33)},
}
_IMAGE: Final = re.compile(
    r"[a-z0-9][a-zA-Z0-9._/-]*(:[0-9]+/[a-zA-Z0-9._/-]+)?(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_MIB: Final = 1024 * 1024
_LEAST_MEMORY: Final = 512 * _MIB
_BESIDES_WEIGHTS: Final = 384 * _MIB
"""Of a server: its processes, a KV cache of the smaller models, and scratch."""


@dataclass(frozen=True)
class ContainerSettings:
    """How to package.

    image: what the result is called, with its tag. base_image: of Python; found by the compiled engine if not given.
    key: the public key that the server then asks for. extras: of this package, such as `onnx`. grpc_port: serve gRPC
    there too. is_offline: bring all wheels along, so that the build needs no package index; they are downloaded now.
    """

    image: str | None = None
    base_image: str | None = None
    key: Path | None = None
    extras: tuple[str, ...] = ()
    grpc_port: int | None = None
    is_offline: bool = False


@dataclass(frozen=True)
class PackageOutcome:
    """What was written. packages: how many are installed besides this one; size: bytes of the folder."""

    path: Path
    image: str
    base_image: str
    packages: int
    size: int


def write_docker_context(
    bundle: Path, out: Path, extension: Path, settings: ContainerSettings, environment: Mapping[str, str]
) -> PackageOutcome:
    """Write a folder with everything that `docker build` needs, from a verified bundle and the package as it runs here.

    extension: the compiled engine. environment: where SOURCE_DATE_EPOCH may fix the date.
    Raises ConfigurationError for a setting that cannot be, or if `out` is there; BundleError, its kinds; StorageError.
    """
    if out.exists() or out.is_symlink():
        raise ConfigurationError(f"{out} is there already; give a new folder with --out")
    key = None if settings.key is None else read_verifying_key(settings.key)
    opened = open_bundle(bundle, key=key)
    base_image = settings.base_image or _find_base_image(extension)
    plan = _plan(opened, settings)
    for name in (base_image, plan.image):
        if not _IMAGE.fullmatch(name):
            raise ConfigurationError(f"{name[:200]!r} is not the name of an image, such as python:3.11-slim-bookworm")
    also = ("cryptography",) if key is not None else ()  # verifying needs it, whatever the extras
    extras = (*settings.extras, *(("grpc",) if settings.grpc_port is not None else ()))
    packages = pin_requirements(extras, also)
    with explained(out.parent, "write"):
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        staging.chmod(0o755)
        wheel = write_wheel(staging / "wheels", extension)
        hashes = _download(packages, staging / "wheels", wheel) if settings.is_offline else {}
        _copy_bundle(opened, staging / "bundle")
        write_sbom(
            staging / SBOM_FILE,
            opened,
            packages,
            wheel=wheel,
            date=build_date(environment),
            hashes={name: digests[0] for name, digests in hashes.items()},
        )
        if settings.key is not None:
            write_atomic(staging / KEY_FILE, settings.key.read_bytes())
        write_atomic(staging / "requirements.txt", _requirements(packages, hashes))
        labels = _labels(opened)
        text = dockerfile(
            base_image,
            wheel.name,
            labels,
            is_offline=settings.is_offline,
            has_key=key is not None,
            grpc_port=settings.grpc_port,
        )
        write_atomic(staging / "Dockerfile", text)
        write_atomic(staging / ".dockerignore", DOCKERIGNORE)
        write_atomic(staging / "compose.yaml", compose_file(plan))
        for name, content in kubernetes_files(plan).items():
            write_atomic(staging / "kubernetes" / name, content)
        write_atomic(staging / "README.md", _readme(plan))
        size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
        place_folder(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return PackageOutcome(out, plan.image, base_image, len(packages), size)


def _plan(bundle: Bundle, settings: ContainerSettings) -> Deployment:
    """Memory for the weights and what goes with them, no more than the target has; its cores."""
    name = re.sub(r"[^a-z0-9]+", "-", bundle.manifest.name.lower()).strip("-")[:40].strip("-") or "model"
    target = bundle.manifest.target
    cores, memory = target.get("cores"), target.get("memory")
    wanted = max(_LEAST_MEMORY, bundle.size + _BESIDES_WEIGHTS)
    if isinstance(memory, int) and memory >= _LEAST_MEMORY:
        wanted = min(wanted, memory)
    return Deployment(
        # A DNS label begins with a letter where it names a service.
        name=name if name[0].isalpha() else f"m-{name}",
        image=settings.image or f"{name}:{__version__}",
        memory=wanted,
        cores=cores if isinstance(cores, int) and 0 < cores <= 1024 else 1,
        grpc_port=settings.grpc_port,
    )


def _find_base_image(extension: Path) -> str:
    """Python's own image on the oldest Debian whose libraries do for the compiled engine."""
    needed = newest_symbols(extension)
    for release, offered in _RELEASES.items():
        if all(version <= offered[library] for library, version in needed.items()):
            return f"python:{sys.version_info.major}.{sys.version_info.minor}-slim-{release}"
    said = ", ".join(f"{library} {'.'.join(map(str, version))}" for library, version in needed.items())
    raise ConfigurationError(
        f"the engine was compiled here for {said}, newer than any Debian release that we know; give --base-image"
    )


def _labels(bundle: Bundle) -> dict[str, str]:
    values = {
        "org.opencontainers.image.title": bundle.manifest.name,
        "org.opencontainers.image.version": __version__,
        "org.opencontainers.image.description": f"{bundle.manifest.architecture} for {bundle.task.kind.value}",
        "org.opencontainers.image.licenses": bundle.manifest.license or "",
        "io.open-autoglm.bundle": f"sha256:{sha256_of_file(bundle.path / MANIFEST)}",
    }
    # A Dockerfile expands what looks like a variable or an escape.
    return {name: re.sub(r"[^A-Za-z0-9 ._:/+()-]", "-", value) for name, value in values.items() if value}


def _copy_bundle(bundle: Bundle, folder: Path) -> None:
    with explained(folder, "write"):
        for name in (MANIFEST, *bundle.manifest.files, *UNLISTED_FILES):
            if name in UNLISTED_FILES and not (bundle.path / name).is_file():
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, folder / name)


def _download(packages: list[Pinned], folder: Path, own: Path) -> dict[str, list[str]]:
    """All packages as wheels for this kind of machine. Returns their SHA-256 by name."""
    from packaging.utils import parse_wheel_filename

    words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    words += ["--only-binary", ":all:", "--dest", str(folder), *(f"{item.name}=={item.version}" for item in packages)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
        raise StorageError(f"the wheels cannot be downloaded ({reason[:300]}); try without --offline")
    hashes: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.whl")):
        if file != own:
            hashes.setdefault(parse_wheel_filename(file.name)[0], []).append(sha256_of_file(file))
    if missing := [item.name for item in packages if item.name not in hashes]:
        raise StorageError(f"pip brought no wheel of {missing[0]}; try without --offline")
    return hashes


def _requirements(packages: list[Pinned], hashes: Mapping[str, list[str]]) -> str:
    lines = [f"# What {PACKAGE} {__version__} needs to serve, as it was installed where this was written."]
    for item in packages:
        marks = "".join(f" --hash=sha256:{digest}" for digest in hashes.get(item.name, ()))
        lines.append(f"{item.name}=={item.version}{marks}")
    return "\n".join(lines) + "\n"


def _readme(plan: Deployment) -> str:
    key = f"${API_KEY_VARIABLE}"
    return f"""# {plan.name} in a container

Written by `open-autoglm package`, for machines of the kind {platform.machine()}.

```sh
docker build -t {plan.image} .
{API_KEY_VARIABLE}=... docker compose up -d
curl -H "Authorization: Bearer {key}" http://127.0.0.1:{PORT}/v1/models
```

The container runs as user 10001, without capabilities, on a root file system that it cannot write, and has no use for a
shell. `{SBOM_FILE}` (CycloneDX) lists what is inside; it lies in the image as `/{SBOM_FILE}`.

On Kubernetes, with an API key from a file that only you can read:

```sh
kubectl create secret generic {secret_name(plan)} --from-file=api-key=FILE
kubectl apply -k kubernetes
```

The network policy lets the pods of the namespace ask, and lets the server ask nobody. TLS is left to what stands before
it, or to `serve --tls-certificate`; then the probes need `scheme: HTTPS`.
"""
