# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm build`: a file of data becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from open_autoglm.cli.ask import choose_reading, kept_input
from open_autoglm.cli.data_options import HELP
from open_autoglm.cli.output import print_json, print_line, print_table

_EPILOG = (
    "Examples: `open-autoglm build examples/snips --budget 15m` · "
    "`open-autoglm build 工单.csv --columns input=内容 output=标签 --out runs/工单`"
)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="build", epilog=_EPILOG)(build_command)


def build_command(
    data: Annotated[Path, typer.Argument(help=HELP["data"])],
    more_columns: Annotated[
        list[str] | None, typer.Argument(metavar="[ROLE=NAME]...", help=HELP["more_columns"], show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/NAME by default. The same command again continues it.")
    ] = None,
    valid: Annotated[Path | None, typer.Option(help=HELP["valid"])] = None,
    test: Annotated[Path | None, typer.Option(help=HELP["test"])] = None,
    task: Annotated[str | None, typer.Option(help=HELP["task"])] = None,
    columns: Annotated[list[str] | None, typer.Option(help=HELP["columns"])] = None,
    mask_pii: Annotated[bool, typer.Option("--mask-pii", help=HELP["mask_pii"])] = False,
    remove_near_duplicates: Annotated[
        bool, typer.Option("--remove-near-duplicates", help=HELP["remove_near_duplicates"])
    ] = False,
    base: Annotated[Path | None, typer.Option(help="A GLM checkpoint folder to start from.")] = None,
    target: Annotated[str, typer.Option(help="The device that the model is for.")] = "cpu",
    budget: Annotated[str, typer.Option(help="The time for everything: 90s, 15m, 1h30m.")] = "15m",
    trials: Annotated[int | None, typer.Option(help="How many trials to start; by the budget if not given.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Train the winner for exactly so many steps, whatever the time.")
    ] = None,
    seed: Annotated[int, typer.Option(help=HELP["seed"])] = 0,
    print_pipeline: Annotated[
        bool, typer.Option("--print-pipeline", help="Print the build as a pipeline's file, and build nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Build a small GLM from DATA: read, search, train, compress, package."""
    from open_autoglm.build_pipeline import build, check_settings, find_splits, specify
    from open_autoglm.data import parse_columns
    from open_autoglm.search.leaderboard import Leaderboard

    with kept_input(data) as given:
        chosen, task = choose_reading(
            find_splits(given)[0], parse_columns([*(columns or []), *(more_columns or [])]), task
        )
        asked: dict[str, Any] = {
            "out": out,
            "valid": valid,
            "test": test,
            "task": task,
            "columns": chosen,
            "base": base,
            "target": target,
            "budget": budget,
            "trials": trials,
            "steps": steps,
            "seed": seed,
            "mask_pii": mask_pii,
            "remove_near_duplicates": remove_near_duplicates,
        }
        if print_pipeline:
            from open_autoglm.pipeline.yaml_writing import write_pipeline

            settings = check_settings(given, **asked)
            print(write_pipeline(specify(settings, settings.to_payload())), end="")  # noqa: T201
            return
        result = build(given, **asked)
    if as_json:
        print_json(result.to_dict())
        return
    board = Leaderboard.load(result.leaderboard)
    print_table(
        "Leaderboard (validation split)",
        ("model", board.metric, "loss", "parameters", "seconds", "state"),
        [
            (
                row.name,
                "" if row.score is None else f"{row.score:.4f}",
                "" if row.valid_loss is None else f"{row.valid_loss:.3f}",
                "" if row.parameters is None else f"{row.parameters / 1e6:.2f}M",
                f"{row.seconds:.1f}",
                row.state,
            )
            for row in board.ranked()
        ],
    )
    for name, value in sorted(result.metrics.items()):
        print_line(f"{name}: {value:.4f}")
    print_line(f"bundle: {result.bundle} ({result.task}, {result.seconds:.0f} s)")
    print_line(f"next:   open-autoglm serve {result.bundle}")
