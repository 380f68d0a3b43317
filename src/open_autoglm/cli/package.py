# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm package`: a bundle as a container."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from open_autoglm.cli.output import print_json, print_line


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(
        name="package",
        epilog="Example: `open-autoglm package runs/snips/bundle --out snips-image`, then `docker build`",
    )(package_command)


def package_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    form: Annotated[Literal["docker"], typer.Option("--format", help="What to write.")] = "docker",
    image: Annotated[str | None, typer.Option(help="What the image is called, NAME:TAG.")] = None,
    base_image: Annotated[
        str | None, typer.Option(help="A Python image; found by the compiled engine if not given.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="A public key: the container serves only what it signed.")] = None,
    extra: Annotated[
        list[str] | None, typer.Option(help="An extra of open-autoglm to install; again for more.")
    ] = None,
    grpc_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Serve gRPC on this port too.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Bring all wheels along: the build needs no index.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Write all that `docker build` needs to serve BUNDLE, with a compose file, Kubernetes manifests and an SBOM."""
    from open_autoglm.bundle.container import ContainerSettings, write_docker_context
    from open_autoglm.errors import ConfigurationError

    found = importlib.util.find_spec("open_autoglm.engine._native")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "the compiled engine is not here, and a container without it could not serve; see: open-autoglm doctor"
        )
    settings = ContainerSettings(image, base_image, key, tuple(extra or ()), grpc_port, offline)
    done = write_docker_context(bundle, out, Path(found.origin), settings, os.environ)
    if as_json:
        print_json(
            {
                "path": str(done.path),
                "format": form,
                "image": done.image,
                "base_image": done.base_image,
                "packages": done.packages,
                "bytes": done.size,
            }
        )
    else:
        print_line(f"{done.path}: {done.size / 1e6:.1f} MB, {done.packages} packages on {done.base_image}")
        print_line(f"docker build -t {done.image} {done.path}")
