# SPDX-License-Identifier: Apache-2.0
"""The page at `/pipelines`: its files, served as the playground's are, some of which it uses too."""

from __future__ import annotations

from importlib import resources
from typing import Final

from starlette.applications import Starlette
from starlette.routing import Route

from open_autoglm.serve.routes.playground_route import PlaygroundFile, PlaygroundFolder, read_files

PAGE_PATH: Final = "/pipelines"
PAGE_FILES: Final = (
    *("index.html", "pipelines.css", "graph_layout.js", "graph_view.js", "main.js", "run_api.js", "run_facts.js"),
    *("run_panel.js", "texts.js"),
)
"""What is served, by name."""
PAGE_PATHS: Final = (PAGE_PATH, *(f"{PAGE_PATH}/{name}" for name in PAGE_FILES if name != "index.html"))
"""Paths that answer without a key: a page must load before its user can type one. They hold nothing of the runs."""


def mount_page(app: Starlette) -> None:
    """Serve the page and its files. Raises OSError if the installation lacks one."""
    files: dict[str, PlaygroundFile] = read_files(
        resources.files("open_autoglm.serve") / "pipelines" / "page", PAGE_FILES
    )
    page = files.pop("index.html")
    app.router.routes.append(Route(PAGE_PATH, page, methods=["GET"], include_in_schema=False))
    folder = PlaygroundFolder(files)
    app.router.routes.append(Route(PAGE_PATH + "/{name}", folder, methods=["GET"], include_in_schema=False))
