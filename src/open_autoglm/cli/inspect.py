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
    """Check BUNDLE, file by file, and show its task, metrics, lineage, licence and who signed it."""
    from open_autoglm.bundle import open_bundle

    opened = open_bundle(bundle)
    manifest = opened.manifest
    signers = [] if opened.signatures is None else [record.key_id for record in opened.signatures.signatures]
    if as_json:
        print_json({"path": str(bundle), "verified": True, "signed_by": signers, **manifest.model_dump(mode="json")})
        return
    print_line(f"{manifest.name}: {manifest.architecture}, {manifest.parameters / 1e6:.2f}M parameters")
    print_line(f"bundle.json of version {manifest.schema_version}; licence: {manifest.license or 'not stated'}")
    said = ", ".join(signers)
    print_line(f"signed by {said}, not checked here: open-autoglm verify --key" if signers else "not signed")
    print_line(f"task: {opened.task.kind.value}, scored by {opened.task.metric}")
    for name, value in sorted(manifest.metrics.items()):
        print_line(f"  {name}: {value:.4f}")
    print_line(f"served by default: {manifest.default_weights}")
    for name, record in manifest.quantizations.items():
        figures = [
            "unknown" if value is None else f"{value:.4f}" for value in (record.metric_before, record.metric_after)
        ]
        print_line(
            f"  {name}: {record.size / 1e6:.2f} MB by {record.method}, "
            f"{opened.task.metric} {figures[0]} -> {figures[1]}"
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
    if manifest.target:
        print_line(f"target: {json.dumps(manifest.target, ensure_ascii=False)}")
    for key, value in manifest.lineage.items():
        print_line(f"{key}: {json.dumps(value, ensure_ascii=False)}")
