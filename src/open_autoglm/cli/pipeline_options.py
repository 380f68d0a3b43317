# SPDX-License-Identifier: Apache-2.0
"""What the commands about pipelines share: where runs are kept, and the options that say so."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from open_autoglm.errors import ConfigurationError

if TYPE_CHECKING:
    from open_autoglm.pipeline.journal import Journal

DEFAULT_FOLDER: Final = Path("runs") / "pipelines"

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        envvar="OPEN_AUTOGLM_DATABASE",
        help="Where runs are remembered: sqlite:///FILE or postgresql://HOST/NAME; by default a file in the folder.",
        show_default=False,
    ),
]
FolderOption = Annotated[
    Path, typer.Option(envvar="OPEN_AUTOGLM_PIPELINES", help="Where runs have their folders; all workers share it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="STAGE.KEY=VALUE", help="A setting stronger than the file's; may be repeated."),
]


def need_pipelines() -> None:
    """Raises ConfigurationError, with what to install, if pipelines cannot run here."""
    for module in ("cronsim", "jsonschema", "sqlalchemy"):
        if importlib.util.find_spec(module) is None:
            raise ConfigurationError(f"pipelines need {module}: pip install 'open-autoglm[pipeline]'")


@contextmanager
def open_journal(database: str | None, folder: Path) -> Iterator[Journal]:
    """The journal that the options name."""
    need_pipelines()
    from open_autoglm.pipeline.journal import Journal

    journal = Journal(database or f"sqlite:///{folder.resolve()}/pipelines.sqlite")
    try:
        yield journal
    finally:
        journal.close()
