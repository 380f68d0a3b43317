# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm verify`: whether a bundle is what was written, and who vouches for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from open_autoglm.cli.output import print_json, print_line


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="verify", epilog="Example: `open-autoglm verify runs/snips/bundle --key release.pub`")(
        verify_command
    )


def verify_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    key: Annotated[Path | None, typer.Option(help="The public key of who must have signed it.")] = None,
    oms: Annotated[bool, typer.Option("--oms", help="The signature is one of Open Model Signing (model.sig).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Compare every file of BUNDLE with its hash, and with --key the signature.

    Exit codes: 0 whole (and signed by that key), 5 not a bundle or changed, 20 not signed, 21 signed by another key,
    22 a signature that is not for this bundle.
    """
    from open_autoglm.bundle import open_bundle
    from open_autoglm.bundle.keys import read_verifying_key
    from open_autoglm.errors import ConfigurationError

    if oms and key is None:
        raise ConfigurationError("--oms needs --key, the public key of who must have signed")
    trusted = read_verifying_key(key) if key is not None and not oms else None
    opened = open_bundle(bundle, key=trusted)
    signer = None if trusted is None else trusted.id
    if oms and key is not None:
        from open_autoglm.bundle.open_model_signing import verify_oms

        signer = verify_oms(opened.path, key)
    present = [] if opened.signatures is None else [record.key_id for record in opened.signatures.signatures]
    if as_json:
        print_json(
            {
                "path": str(bundle),
                "verified": True,
                "files": len(opened.manifest.files),
                "bytes": opened.size,
                "signed_by": present,
                "signature_verified": signer,
            }
        )
        return
    print_line(f"{len(opened.manifest.files)} files, {opened.size / 1e6:.2f} MB: all as they were written")
    if signer is not None:
        print_line(f"signed by {signer}")
    elif present:
        print_line(f"signed by {', '.join(present)}; this was not checked: give --key")
    else:
        print_line("not signed")
