# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm run`, `resume`, `retry`: pipelines run in this process, as far as they go."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from open_autoglm.cli.output import print_json, print_line
from open_autoglm.cli.pipeline_options import (
    DEFAULT_FOLDER,
    DatabaseOption,
    FolderOption,
    JsonOption,
    SetOption,
    need_pipelines,
    open_journal,
)
from open_autoglm.errors import ConfigurationError, PipelineError

if TYPE_CHECKING:
    from open_autoglm.pipeline.journal import Journal

DetachOption = Annotated[bool, typer.Option("--detach", help="Leave the work to `open-autoglm worker`.")]
_EPILOG = "Example: `open-autoglm run tickets.yaml --set fetch.config.query='select 1'`"


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command(name="run", epilog=_EPILOG)(run_command)
    app.command(name="resume")(resume_command)
    app.command(name="retry")(retry_command)


def run_command(
    file: Annotated[Path, typer.Argument(help="A pipeline's YAML file.")],
    changes: SetOption = None,
    payload: Annotated[
        str | None, typer.Option("--input", help="What the first stages get: a JSON object, or @FILE with one.")
    ] = None,
    priority: Annotated[str | None, typer.Option(help="low, normal, high or urgent; the file's by default.")] = None,
    key: Annotated[str | None, typer.Option(help="A second run of the same key is not started.")] = None,
    detach: DetachOption = False,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Run a pipeline now. Ctrl-C stops it; `resume` goes on where it was."""
    need_pipelines()
    from open_autoglm.pipeline.catalog import default_catalog
    from open_autoglm.pipeline.file_schema import PRIORITIES
    from open_autoglm.pipeline.yaml_file import read_pipeline
    from open_autoglm.spelling import did_you_mean

    if priority is not None and priority not in PRIORITIES:
        raise ConfigurationError(f"--priority '{priority}' is unknown{did_you_mean(priority, PRIORITIES)}")
    content = read_pipeline(file, default_catalog(), changes=changes or ()).to_dict()
    with open_journal(database, folder) as journal:
        run_id, is_new = journal.submit(
            content,
            None,
            folder=str(folder.resolve()),
            key=key,
            priority=None if priority is None else PRIORITIES[priority],
            payload=_payload(payload),
        )
        if not is_new:
            _say(f"run {run_id}: there is one of this key already")
        _work(journal, run_id, folder, detach=detach, as_json=as_json)


def resume_command(
    run: Annotated[str, typer.Argument(help="A run's id, or the beginning of it.")],
    detach: DetachOption = False,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was paused or interrupted."""
    from open_autoglm.pipeline.run_requests import ask

    with open_journal(database, folder) as journal:
        _work(journal, ask(journal, run, "").run_id, folder, detach=detach, as_json=as_json)


def retry_command(
    run: Annotated[str, typer.Argument(help="A run's id, or the beginning of it.")],
    from_stage: Annotated[
        str | None, typer.Option("--from", help="Do this stage and all that follow it anew, done or not.")
    ] = None,
    detach: DetachOption = False,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Run a run that failed or was cancelled again, without what is done already."""
    from open_autoglm.pipeline.run_requests import retry

    with open_journal(database, folder) as journal:
        _work(journal, retry(journal, run, from_stage).run_id, folder, detach=detach, as_json=as_json)


def _work(journal: Journal, run_id: str, folder: Path, *, detach: bool, as_json: bool) -> None:
    """Work on a run until it ends, and say what happens on stderr and what came of it on stdout."""
    from open_autoglm.pipeline.run_view import run_summary, shown_state

    if detach:
        run = journal.get(run_id)
        print_json(run_summary(run)) if as_json else print_line(run_id)
        return
    from open_autoglm.pipeline.catalog import default_catalog
    from open_autoglm.pipeline.run_requests import ask
    from open_autoglm.pipeline.worker import Worker

    _say(f"run {run_id} (open-autoglm show {run_id})")
    teller = _Teller(journal, run_id)
    worker = Worker(journal, default_catalog(), folder)
    try:
        run = worker.run(run_id, on_look=teller.tell, on_wait=lambda reason: _say(f"run {run_id} waits: {reason}"))
        teller.tell()
    except KeyboardInterrupt:
        with contextlib.suppress(PipelineError):  # it may have ended just then
            ask(journal, run_id, "pause")  # or another worker would take it at once
        _say(f"interrupted; open-autoglm resume {run_id} goes on where it was")
        raise
    finally:
        worker.close()
    payload = None if run.result is None else run.result.payload
    if as_json:
        print_json({**run_summary(run), "payload": payload})
    if run.state in ("failed", "cancelled"):
        again = f"open-autoglm retry {run_id} goes on there"
        raise PipelineError(
            f"the run {run_id} {'failed: ' if run.reason else 'was cancelled'}{run.reason or ''}; {again}"
        )
    if not as_json:
        print_line(f"run {run_id}: {shown_state(run)}")
        if payload is not None:
            text = json.dumps(payload, ensure_ascii=False)
            print_line(text if len(text) <= 2000 else text[:2000] + f"... ({len(text)} characters)")


class _Teller:
    """Says on stderr what has changed since it last looked."""

    def __init__(self, journal: Journal, run_id: str) -> None:
        self._journal, self._run_id = journal, run_id
        known = journal.transitions(run_id)
        self._last = known[-1]["id"] if known else 0

    def tell(self) -> None:
        for change in self._journal.transitions(self._run_id, self._last):
            self._last = change["id"]
            if change["stage"] is not None and change["state"] != "waiting":
                number = f"[{change['number']}]" if change["number"] else ""
                attempt = f" (attempt {change['attempt']})" if (change["attempt"] or 0) > 1 else ""
                reason = f": {change['reason']}" if change["reason"] else ""
                _say(f"  {change['stage']}{number}: {change['state']}{attempt}{reason}")


def _payload(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        if text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--input: {error}; give a JSON object, or @FILE with one") from None
    if not isinstance(value, dict):
        raise ConfigurationError('--input must be a JSON object, such as \'{"text": "hello"}\'')
    return value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
