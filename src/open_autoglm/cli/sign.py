# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm sign`: vouch for a bundle with a key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from open_autoglm.cli.output import print_json, print_line


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="sign", epilog="Example: `open-autoglm sign runs/snips/bundle --key release.key`")(sign_command)


def sign_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    key: Annotated[Path, typer.Option(help="The private key, from `keygen`.")],
    oms: Annotated[
        bool,
        typer.Option("--oms", help="Write a signature of Open Model Signing (model.sig) instead, with a p256 key."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Check every file of BUNDLE, then sign its bundle.json, which has the hash of each. Nothing leaves the machine."""
    from open_autoglm.bundle import open_bundle, sign_bundle
    from open_autoglm.bundle.keys import read_signing_key
    from open_autoglm.bundle.signature import OMS_SIGNATURE_FILE, SIGNATURE_FILE

    if oms:
        from open_autoglm.bundle.open_model_signing import sign_oms

        signer, file = sign_oms(open_bundle(bundle).path, key, os.environ), OMS_SIGNATURE_FILE
    else:
        signing = read_signing_key(key, os.environ)
        sign_bundle(bundle, signing)
        signer, file = signing.verifying.id, SIGNATURE_FILE
    if as_json:
        print_json({"path": str(bundle), "signature": str(bundle / file), "key_id": signer})
    else:
        print_line(f"{bundle / file}: signed by {signer}")
