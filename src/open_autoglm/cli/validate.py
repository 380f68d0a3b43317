# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm validate` and `open-autoglm graph`: a pipeline's file, checked and drawn, and nothing run."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.cli.pipeline_options import JsonOption, SetOption, need_pipelines
from open_autoglm.errors import ConfigurationError, SpecificationError


class GraphFormat(StrEnum):
    """How to draw."""

    terminal = "terminal"
    mermaid = "mermaid"
    svg = "svg"


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command(name="validate")(validate_command)
    app.command(name="graph")(graph_command)


def validate_command(
    files: Annotated[list[Path] | None, typer.Argument(help="Pipelines' YAML files.", show_default=False)] = None,
    changes: SetOption = None,
    print_schema: Annotated[
        bool, typer.Option("--print-schema", help="Print the JSON Schema of such files, for editors.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check pipelines' files: every fault with its line and column."""
    need_pipelines()
    from open_autoglm.pipeline.catalog import default_catalog
    from open_autoglm.pipeline.file_schema import pipeline_schema
    from open_autoglm.pipeline.yaml_file import read_pipeline

    if print_schema:
        print(json.dumps(pipeline_schema(), indent=2, ensure_ascii=False))  # noqa: T201
        return
    if not files:
        raise ConfigurationError("name a pipeline's file, or give --print-schema")
    catalog = default_catalog()
    faults: list[str] = []
    valid: list[dict[str, object]] = []
    for file in files:
        try:
            found = read_pipeline(file, catalog, changes=changes or ())
        except SpecificationError as error:
            faults += error.faults
        else:
            valid.append(
                {"file": str(file), "name": found.specification.name, "stages": len(found.specification.stages)}
            )
    if as_json:
        print_json({"valid": valid, "faults": faults})
    else:
        for one in valid:
            print_line(f"{one['file']}: pipeline '{one['name']}' with {one['stages']} stages is valid")
    if faults:
        raise SpecificationError("\n".join(faults), tuple(faults))


def graph_command(
    file: Annotated[Path, typer.Argument(help="A pipeline's YAML file.")],
    as_format: Annotated[GraphFormat, typer.Option("--format", help="How to draw it.")] = GraphFormat.terminal,
    out: Annotated[Path | None, typer.Option(help="Write to this file; *.svg and *.mmd say the format too.")] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a pipeline: in the terminal, as Mermaid, or as SVG."""
    need_pipelines()
    from open_autoglm.pipeline.catalog import default_catalog
    from open_autoglm.pipeline.drawing import draw_lines, draw_mermaid, draw_svg
    from open_autoglm.pipeline.yaml_file import read_pipeline
    from open_autoglm.storage import write_atomic

    specification = read_pipeline(file, default_catalog(), changes=changes or ()).specification
    if out is not None and as_format is GraphFormat.terminal:
        as_format = GraphFormat.svg if out.suffix == ".svg" else GraphFormat.mermaid
    if as_json:
        print_json(
            {
                "name": specification.name,
                "stages": [stage.stage for stage in specification.order],
                "needs": {name: list(needs) for name, needs in specification.needs.items()},
            }
        )
        return
    if as_format is GraphFormat.terminal:
        print_table(specification.name, ("step", "stage", "module", "needs"), draw_lines(specification))
        return
    text = draw_svg(specification) if as_format is GraphFormat.svg else draw_mermaid(specification)
    if out is None:
        print(text, end="")  # noqa: T201
    else:
        write_atomic(out, text)
        print_line(str(out))
