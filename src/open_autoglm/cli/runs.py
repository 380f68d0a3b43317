# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm runs`, `show`, `cancel`, `pause`: what runs there are, how they are, and having them end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.cli.pipeline_options import (
    DEFAULT_FOLDER,
    DatabaseOption,
    FolderOption,
    JsonOption,
    need_pipelines,
    open_journal,
)
from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from open_autoglm.pipeline.journal import Journal
    from open_autoglm.pipeline.journal_records import RunRecord
    from open_autoglm.pipeline.run_logs import RunLogs

RunArgument = Annotated[str, typer.Argument(help="A run's id, or the beginning of it.")]
_LOOK_SECONDS = 0.5


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command(name="runs")(runs_command)
    app.command(name="show")(show_command)
    app.command(name="cancel")(cancel_command)
    app.command(name="pause")(pause_command)


def runs_command(
    pipeline: Annotated[str | None, typer.Option(help="Of this pipeline only.")] = None,
    state: Annotated[
        str | None, typer.Option(help="Only these: waiting, running, paused, done, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the latest first.")] = 30,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """List the runs of pipelines."""
    need_pipelines()
    from open_autoglm.pipeline.journal_records import ENDED, PAUSED, RUNNING, WAITING
    from open_autoglm.pipeline.run_view import run_summary, shown_state, shown_time

    states = (WAITING, RUNNING, PAUSED, *ENDED)
    if state is not None and state not in states:
        raise ConfigurationError(
            f"--state '{state}' is unknown{did_you_mean(state, states)}; states of runs are {', '.join(states)}"
        )
    with open_journal(database, folder) as journal:
        found = journal.list(pipeline, state, limit)
    if as_json:
        print_json({"runs": [run_summary(run) for run in found]})
        return
    print_table(
        "Runs",
        ("run", "pipeline", "state", "created (UTC)", "seconds", "reason"),
        [
            (
                run.run_id,
                run.pipeline,
                shown_state(run),
                str(shown_time(run.created))[:19].replace("T", " "),
                f"{run.updated - run.created:.1f}",
                (run.reason or "")[:80],
            )
            for run in found
        ],
    )


def show_command(
    run: RunArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stay, and show how it goes on until it ends.")
    ] = False,
    logs: Annotated[
        bool, typer.Option("--logs", help="Show what the stages have logged too; with --follow as it comes.")
    ] = False,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Show a run: its stages with their states, attempts and times."""
    from rich.console import Console
    from rich.live import Live

    need_pipelines()
    from open_autoglm.pipeline.run_logs import RunLogs
    from open_autoglm.pipeline.run_view import rests

    with open_journal(database, folder) as journal:
        record = journal.get(run)
        if follow:
            news = RunLogs(Path(record.folder), Path(record.folder))
            with Live(_table(journal, record), console=Console(stderr=as_json), refresh_per_second=4) as live:
                while not rests(record):
                    _print_news(live.console, news if logs else None)
                    time.sleep(_LOOK_SECONDS)
                    record = journal.get(record.run_id)
                    live.update(_table(journal, record))
                _print_news(live.console, news if logs else None)
        if as_json:
            print_json(_as_json(journal, record))
            return
        if not follow:
            Console().print(_table(journal, record), markup=False)
        if record.reason:
            print_line(f"reason: {record.reason}")
        print_line(f"folder: {record.folder}")
        if logs and not follow:
            for path in sorted(Path(record.folder).glob("stages/*/*.log")):
                print_line(f"--- {path.parent.name}/{path.name}")
                print_line(path.read_text(encoding="utf-8", errors="replace").rstrip())


def _print_news(console: Console, logs: RunLogs | None) -> None:
    """Above the table: what the stages have logged since the last look."""
    for news in reversed(logs.follow() if logs is not None else []):
        name = f"{news.stage}[{news.number}]" if news.number else news.stage
        for line in news.lines:
            console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)


def cancel_command(
    run: RunArgument,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Stop a run for good, with everything that runs in it."""
    _ask(run, "cancel", database, folder, as_json=as_json)


def pause_command(
    run: RunArgument,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Let a run finish what it is at, and rest until `resume`."""
    _ask(run, "pause", database, folder, as_json=as_json)


def _ask(run: str, control: str, database: str | None, folder: Path, *, as_json: bool) -> None:
    need_pipelines()
    from open_autoglm.pipeline.run_requests import ask
    from open_autoglm.pipeline.run_view import run_summary, shown_state

    with open_journal(database, folder) as journal:
        record = ask(journal, run, control)
    print_json(run_summary(record)) if as_json else print_line(f"run {record.run_id}: {shown_state(record)}")


def _table(journal: Journal, record: RunRecord) -> Table:
    from rich.table import Table

    from open_autoglm.pipeline.run_view import items_by_stage, shown_state, stage_state

    table = Table(title=f"{record.pipeline}, run {record.run_id}: {shown_state(record)}", title_justify="left")
    for name in ("stage", "module", "state", "items", "attempts", "seconds", "reason"):
        table.add_column(name, overflow="fold")
    for name, items in items_by_stage(journal, record).items():
        started = [item.started for item in items if item.started is not None]
        ended = [item.ended for item in items if item.ended is not None]
        done = sum(item.state == "done" for item in items)
        reasons = [str(item.failure["message"]) for item in items if item.failure and item.state == "failed"]
        table.add_row(
            name,
            record.specification.stage(name).module,
            stage_state(items),
            f"{done}/{len(items)}",
            str(sum(item.attempt for item in items)),
            f"{(max(ended) if ended else time.time()) - min(started):.1f}" if started else "",
            reasons[0] if reasons else "",
        )
    return table


def _as_json(journal: Journal, record: RunRecord) -> dict[str, Any]:
    from open_autoglm.pipeline.run_view import items_by_stage, run_summary, shown_time, stage_state

    return {
        **run_summary(record),
        "trace_id": record.trace_id,
        "payload": None if record.result is None else record.result.payload,
        "stages": {
            name: {
                "state": stage_state(items),
                "needs": list(record.specification.needs.get(name, ())),
                "items": [
                    {
                        "number": item.key.number,
                        "state": item.state,
                        "attempt": item.attempt,
                        "started": shown_time(item.started),
                        "ended": shown_time(item.ended),
                        "failure": None if item.failure is None else item.failure["message"],
                    }
                    for item in items
                ],
            }
            for name, items in items_by_stage(journal, record).items()
        },
        "transitions": [
            {
                "time": shown_time(change["time"]),
                **{name: change[name] for name in ("stage", "number", "state", "attempt", "reason")},
            }
            for change in journal.transitions(record.run_id)
        ],
    }
