# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm keygen`: make a key to sign bundles with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from open_autoglm.cli.output import print_json, print_line


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="keygen", epilog="Example: `open-autoglm keygen release`, then `sign BUNDLE --key release.key`")(
        keygen_command
    )


def keygen_command(
    name: Annotated[Path, typer.Argument(help="The files are NAME.key and NAME.pub.")],
    algorithm: Annotated[
        Literal["ed25519", "p256"], typer.Option(help="p256 is for `sign --oms` only, which takes no Ed25519.")
    ] = "ed25519",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Make a key pair. NAME.key stays with the signer; NAME.pub goes to everybody who verifies.

    The private key is encrypted if OPEN_AUTOGLM_KEY_PASSPHRASE is set. No file is ever overwritten.
    """
    from open_autoglm.bundle.keys import PASSPHRASE_VARIABLE, create_key_files

    made = create_key_files(name, os.environ, algorithm)
    if as_json:
        print_json({"private": str(made.private), "public": str(made.public), "id": made.id})
        return
    protection = (
        f"encrypted with the passphrase in {PASSPHRASE_VARIABLE}"
        if made.is_encrypted
        else f"not encrypted: set {PASSPHRASE_VARIABLE} before, if it should be"
    )
    print_line(f"{made.private}: keep it to yourself ({protection})\n{made.public}: give it away\nkey {made.id}")
