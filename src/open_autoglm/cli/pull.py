# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm pull`: get a bundle from where it was pushed to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from open_autoglm.cli.output import print_json, print_line
from open_autoglm.progress import ProgressBar


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(
        name="pull", epilog="Example: `open-autoglm pull oci://registry.local/snips:1.0 --out snips --key release.pub`"
    )(pull_command)


def pull_command(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="oci://HOST/NAME:TAG, s3://BUCKET/NAME:TAG, or FOLDER:TAG.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    key: Annotated[Path | None, typer.Option(help="The public key of who must have signed it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Pull the bundle REF into a new folder, which appears when every file of it is verified.

    The same command after an interruption goes on where it stopped. NAME@sha256:... in place of NAME:TAG names one
    bundle for all time. Credentials: see `push`.
    """
    from open_autoglm.bundle.keys import read_verifying_key
    from open_autoglm.bundle.registry import parse_reference
    from open_autoglm.bundle.transfer import pull_bundle

    place = parse_reference(reference)
    trusted = None if key is None else read_verifying_key(key)
    with ProgressBar("pull", 1.0) as bar:
        bundle = pull_bundle(
            place, out, os.environ, key=trusted, on_progress=lambda done, total: bar.update(done / max(total, 1))
        )
    if as_json:
        print_json(
            {
                "path": str(out),
                "name": bundle.manifest.name,
                "bytes": bundle.size,
                "signature_verified": None if trusted is None else trusted.id,
            }
        )
    else:
        said = "" if trusted is None else f", signed by {trusted.id}"
        print_line(f"{out}: {bundle.manifest.name}, {bundle.size / 1e6:.2f} MB, verified{said}")
