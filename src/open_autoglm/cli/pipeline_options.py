# SPDX-License-Identifier: Apache-2.0
"""What the commands about pipelines share: where runs are kept, and how a run is shown."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from open_autoglm.errors import ConfigurationError

if TYPE_CHECKING:
    from open_autoglm.pipeline.journal import Journal
    from open_autoglm.pipeline.journal_records import RunRecord

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


def run_summary(run: RunRecord) -> dict[str, Any]:
    """A run as JSON."""
    return {
        "run": run.run_id,
        "pipeline": run.pipeline,
        "state": shown_state(run),
        "reason": run.reason,
        "priority": run.priority,
        "created": shown_time(run.created),
        "updated": shown_time(run.updated),
        "worker": run.owner,
        "folder": run.folder,
    }


def shown_state(run: RunRecord) -> str:
    """The state, and what was asked for beside it."""
    if run.control == "pause":
        return "paused" if run.owner is None else "pausing"
    return "cancelling" if run.control == "cancel" else run.state


def shown_time(seconds: float | None) -> str | None:
    """Seconds since 1970 as ISO 8601 in UTC."""
    if seconds is None:
        return None
    return (
        datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
