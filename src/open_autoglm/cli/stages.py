# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm stages`: what the built-in stages of pipelines do and take."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="stages", epilog="Example: `open-autoglm stages retrieve`")(stages_command)


def stages_command(
    name: Annotated[str | None, typer.Argument(help="One of them; all if not given.", show_default=False)] = None,
) -> None:
    """Print the built-in stages of pipelines in Markdown: what they do, their settings, types, defaults, an example."""
    from open_autoglm.cli.pipeline_options import need_pipelines

    need_pipelines()
    from open_autoglm.pipeline.stage_page import stage_page

    sys.stdout.write(stage_page(name))
