# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm pack`: write a model's weights as the native engine uses them, so that it starts at once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from open_autoglm.cli.output import print_json, print_line


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="pack", epilog="Example: `open-autoglm pack path/to/glm-edge-1.5b-chat --quantize int4`")(
        pack_command
    )


def pack_command(
    model: Annotated[str, typer.Argument(help="A bundle, a GLM checkpoint folder, or the NAME of runs/NAME.")],
    quantize: Annotated[Literal["int8", "int4"] | None, typer.Option(help="Round the weights to 8 or 4 bits.")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of weights that are not rounded.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Pack MODEL's weights for the native engine, beside its other files.

    The engine then maps the file instead of reading, rounding and packing the weights at each start, and servers of
    the same model share its memory.
    """
    from open_autoglm.engine.packing import pack_model

    outcome = pack_model(model, form=quantize or dtype)
    found: dict[str, Any] = {
        "file": str(outcome.path),
        "bytes": outcome.size,
        "seconds": round(outcome.seconds, 3),
        "lost_signature": outcome.lost_signature,
    }
    if as_json:
        print_json(found)
    else:
        print_line(f"{outcome.path}: {outcome.size / 1e6:.1f} MB in {outcome.seconds:.1f} s")
        if outcome.lost_signature:
            print_line("the bundle has one file more, so its signature is gone: sign it again with open-autoglm sign")
