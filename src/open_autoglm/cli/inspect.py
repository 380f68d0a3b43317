# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm inspect`: what a bundle is, after checking every file of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from open_autoglm.cli.output import print_json, print_line, print_table


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="inspect", epilog="Example: `open-autoglm inspect runs/snips/bundle`")(inspect_command)


def inspect_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Verify BUNDLE, file by file, and show its task, metrics and lineage."""
    from open_autoglm.bundle import open_bundle

    opened = open_bundle(bundle)
    manifest = opened.manifest
    if as_json:
        print_json({"path": str(bundle), "verified": True, **manifest.model_dump(mode="json")})
        return
    print_line(f"{manifest.name}: {manifest.architecture}, {manifest.parameters / 1e6:.2f}M parameters")
    print_line(f"task: {opened.task.kind.value}, scored by {opened.task.metric}")
    for name, value in sorted(manifest.metrics.items()):
        print_line(f"  {name}: {value:.4f}")
    print_line(f"served by default: {manifest.default_weights}")
    for name, record in manifest.quantizations.items():
        print_line(
            f"  {name}: {record.size / 1e6:.2f} MB by {record.method}, "
            f"{opened.task.metric} {record.metric_before:.4f} -> {record.metric_after:.4f}"
        )
    print_table(
        f"{len(manifest.files)} files, {opened.size / 1e6:.2f} MB, all as they were written",
        ("file", "bytes", "sha256"),
        [(name, str(record.size), record.sha256[:16] + "…") for name, record in manifest.files.items()],
    )
    if opened.task.answer_schema is not None:
        print_line(f"answers fit: {json.dumps(opened.task.answer_schema, ensure_ascii=False)}")
    if opened.task.labels:
        print_line(f"labels ({len(opened.task.labels)}): {', '.join(opened.task.labels)}")
    for key, value in manifest.lineage.items():
        print_line(f"{key}: {json.dumps(value, ensure_ascii=False)}")
