# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm diff`: in what two bundles differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from open_autoglm.cli.output import print_json, print_line

if TYPE_CHECKING:
    from open_autoglm.bundle.comparison import Difference

_DIFFERENT: Final = 1
_MOST_CHARACTERS: Final = 100


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="diff", epilog="Example: `open-autoglm diff runs/a/bundle runs/b/bundle`")(diff_command)


def diff_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="A bundle folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Say in what bundle B differs from bundle A: task, metrics, lineage, files. Both are verified first.

    The exit code is 0 when they are the same, and 1 when they differ.
    """
    from open_autoglm.bundle import open_bundle
    from open_autoglm.bundle.comparison import compare_manifests, differ_in_time_only

    differences = compare_manifests(open_bundle(first).manifest, open_bundle(second).manifest)
    if as_json:
        print_json(
            {
                "equal": not differences,
                "time_only": differ_in_time_only(differences),
                "differences": [difference.to_dict() for difference in differences],
            }
        )
    elif not differences:
        print_line("the same, in every byte of every file")
    else:
        for difference in differences:
            print_line(_line(difference))
        if differ_in_time_only(differences):
            print_line("only dates and durations differ: two builds of the same")
    if differences:
        raise typer.Exit(_DIFFERENT)


def _line(difference: Difference) -> str:
    if difference.section == "files":
        before = "" if difference.before is None else f"{difference.before['size']} bytes"
        after = "" if difference.after is None else f"{difference.after['size']} bytes"
    else:
        before, after = _short(difference.before), _short(difference.after)
    match difference.change:
        case "added":
            return f"+ {difference.place}: {after}"
        case "removed":
            return f"- {difference.place}: {before}"
        case "changed":
            delta = "" if difference.delta is None else f" ({difference.delta:+.6g})"
            return f"~ {difference.place}: {before} -> {after}{delta}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
