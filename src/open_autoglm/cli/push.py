# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm push`: put a bundle where others can get it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from open_autoglm.cli.output import print_json, print_line
from open_autoglm.progress import ProgressBar


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="push", epilog="Example: `open-autoglm push runs/snips/bundle oci://registry.local/snips:1.0`")(
        push_command
    )


def push_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="oci://HOST/NAME:TAG, s3://BUCKET/NAME:TAG, or FOLDER:TAG.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Verify BUNDLE and push it to REF. Files that are there already are not sent again.

    Credentials come from the environment: OPEN_AUTOGLM_REGISTRY_USERNAME and OPEN_AUTOGLM_REGISTRY_PASSWORD, or
    OPEN_AUTOGLM_REGISTRY_TOKEN; for S3 those of AWS. oci+http:// is for a registry without HTTPS.
    """
    from open_autoglm.bundle.registry import parse_reference
    from open_autoglm.bundle.transfer import push_bundle

    place = parse_reference(reference)
    with ProgressBar("push", 1.0) as bar:
        done = push_bundle(bundle, place, os.environ, lambda sent, total: bar.update(sent / max(total, 1)))
    if as_json:
        print_json({"reference": str(place), "digest": done.digest, "sent": done.sent, "skipped": done.skipped})
    else:
        print_line(f"{place}: {done.sent / 1e6:.2f} MB sent, {done.skipped / 1e6:.2f} MB were there\n{done.digest}")
