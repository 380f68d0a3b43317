# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm worker` and `open-autoglm schedule`: runs that start by themselves, and who works on them."""

from __future__ import annotations

import datetime
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.cli.pipeline_options import (
    DEFAULT_FOLDER,
    DatabaseOption,
    FolderOption,
    JsonOption,
    open_journal,
)
from open_autoglm.errors import ConfigurationError

if TYPE_CHECKING:
    from open_autoglm.pipeline.triggers.source import PipelineSource
    from open_autoglm.pipeline.yaml_file import PipelineFile

PipelineArgument = Annotated[str, typer.Argument(help="A pipeline's name.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the tree."""
    app.command(name="worker")(worker_command)
    schedule = typer.Typer(name="schedule", help="Pipelines that start by themselves.", no_args_is_help=True)
    schedule.command(name="add")(add_command)
    schedule.command(name="list")(list_command)
    schedule.command(name="pause")(pause_command)
    schedule.command(name="resume")(resume_command)
    schedule.command(name="backfill")(backfill_command)
    app.add_typer(schedule)


def worker_command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Pipelines' files to enter into the schedule first.", show_default=False)
    ] = None,
    cpu: Annotated[
        float | None, typer.Option(min=0.1, help="Cores to give to stages; this machine's by default.")
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Memory to give to stages, such as 8GB.")] = None,
    gpu: Annotated[int | None, typer.Option(min=0, help="GPUs to give to stages.")] = None,
    lease: Annotated[
        float,
        typer.Option(min=1.0, help="Seconds after which another worker takes the runs of one that is not heard of."),
    ] = 30.0,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when there is nothing more to do.")] = False,
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
) -> None:
    """Work on runs as they come, and start those whose time has come. Any number of workers may share a database."""
    from open_autoglm.pipeline.amounts import bytes_of
    from open_autoglm.pipeline.catalog import default_catalog
    from open_autoglm.pipeline.placement import Capacity, machine_capacity
    from open_autoglm.pipeline.worker import Worker

    whole = machine_capacity()
    try:
        capacity = Capacity(
            whole.cpu if cpu is None else cpu,
            whole.memory if memory is None else bytes_of(memory),
            whole.gpu if gpu is None else gpu,
        )
    except ValueError as error:
        raise ConfigurationError(f"--memory: {error}") from None
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with open_journal(database, folder) as journal, ExitStack() as opened:
        _enter(journal, files or [])
        sources = _sources(files or [], opened)
        worker = Worker(journal, default_catalog(), folder, capacity=capacity, lease=lease, on_message=_say)
        _say(f"worker {worker.name}: {capacity.cpu:g} cpu, {capacity.memory / 1e9:.1f} GB, {capacity.gpu} gpu")
        try:
            worker.serve(stop, sources=sources, until_idle=until_idle)
        finally:
            worker.close()


def add_command(
    files: Annotated[list[Path], typer.Argument(help="Pipelines' files with a cron, or that come after another.")],
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
) -> None:
    """Enter pipelines into the schedule, or their new form."""
    with open_journal(database, folder) as journal:
        _enter(journal, files)


def list_command(
    database: DatabaseOption = None, folder: FolderOption = DEFAULT_FOLDER, as_json: JsonOption = False
) -> None:
    """List the pipelines that start by themselves, and when they do next."""
    from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook

    now = datetime.datetime.now(datetime.UTC)
    with open_journal(database, folder) as journal:
        rows = [schedule.summary(now) for schedule in ScheduleBook(journal).list()]
    if as_json:
        print_json({"schedules": rows})
        return
    print_table(
        "Schedules",
        ("pipeline", "starts", "time zone", "missed", "state", "next (UTC)"),
        [
            (
                row["pipeline"],
                row["cron"] or f"after {row['after']}",
                row["timezone"],
                row["missed"],
                "paused" if row["paused"] else "on",
                row["next"] or "",
            )
            for row in rows
        ],
    )


def pause_command(
    pipeline: PipelineArgument, database: DatabaseOption = None, folder: FolderOption = DEFAULT_FOLDER
) -> None:
    """Let a pipeline start no runs by itself until `schedule resume`."""
    _set_pause(pipeline, database, folder, paused=True)


def resume_command(
    pipeline: PipelineArgument, database: DatabaseOption = None, folder: FolderOption = DEFAULT_FOLDER
) -> None:
    """Let a pipeline start by itself again, from now on."""
    _set_pause(pipeline, database, folder, paused=False)


def backfill_command(
    pipeline: PipelineArgument,
    start: Annotated[datetime.datetime, typer.Option("--from", help="From here on, in UTC.")],
    end: Annotated[datetime.datetime, typer.Option("--to", help="Up to here, in UTC, without it.")],
    database: DatabaseOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    as_json: JsonOption = False,
) -> None:
    """Start the runs that a schedule would have started in a time that is past, but for those that there are."""
    from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook

    with open_journal(database, folder) as journal:
        fired = ScheduleBook(journal).back_fill(
            pipeline, start.replace(tzinfo=datetime.UTC), end.replace(tzinfo=datetime.UTC), str(folder.resolve())
        )
    if as_json:
        print_json({"runs": [one.run_id for one in fired]})
    else:
        print_line(f"{pipeline}: {len(fired)} runs wait for a worker")


def _enter(journal: Any, files: list[Path]) -> None:
    from open_autoglm.pipeline.catalog import default_catalog
    from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook
    from open_autoglm.pipeline.yaml_file import read_pipeline

    catalog = default_catalog()
    for file in files:
        found = read_pipeline(file, catalog)
        entered = ScheduleBook(journal).put(found.to_dict())
        _say(f"{found.specification.name}: {'entered' if entered else _what_starts(found)}")


def _what_starts(file: PipelineFile) -> str:
    """What is said of a pipeline that is not for the schedule."""
    if file.trigger.file is not None or file.trigger.queue is not None:
        return f"`worker FILE` waits for its {'files' if file.trigger.file is not None else 'messages'}"
    return "no clock and no other pipeline starts it"


def _sources(files: list[Path], opened: ExitStack) -> list[PipelineSource]:
    """What starts runs of these pipelines when a file or a message arrives; the schedule is not among it."""
    from open_autoglm.pipeline.catalog import default_catalog
    from open_autoglm.pipeline.triggers.file_arrival import FileArrival
    from open_autoglm.pipeline.triggers.queues.arrival import QueueArrival
    from open_autoglm.pipeline.triggers.source import PipelineSource
    from open_autoglm.pipeline.yaml_file import read_pipeline

    catalog = default_catalog()
    read = [read_pipeline(file, catalog) for file in files]
    found: list[PipelineSource] = []
    for one in read:
        if one.trigger.webhook is not None:
            _say(f"warning: {one.specification.name}: webhooks are taken by `serve --pipelines`, not by a worker")
        if one.trigger.file is not None:
            found.append(PipelineSource(one.to_dict(), FileArrival(one.trigger.file)))
        if one.queue is not None:
            queue = QueueArrival(one.queue, _say)
            opened.callback(queue.close)
            found.append(PipelineSource(one.to_dict(), queue))
    return found


def _set_pause(pipeline: str, database: str | None, folder: Path, *, paused: bool) -> None:
    from open_autoglm.pipeline.triggers.schedule_book import ScheduleBook

    with open_journal(database, folder) as journal:
        ScheduleBook(journal).pause(pipeline, paused=paused)
    print_line(f"{pipeline}: {'paused' if paused else 'on'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
