# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm leaderboard`: what a build tried, beside the baselines."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.errors import ConfigurationError

if TYPE_CHECKING:
    from open_autoglm.search.leaderboard import Leaderboard


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="leaderboard", epilog="Example: `open-autoglm leaderboard runs/snips --html board.html`")(
        leaderboard_command
    )


def leaderboard_command(
    run: Annotated[Path, typer.Argument(help="The run folder of a build, or the NAME of runs/NAME.")],
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page with plots to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Show every candidate of RUN with its score, interval, size, latency and cost, beside the baselines."""
    from open_autoglm.search.leaderboard import BOARD_FILE, Leaderboard

    folder = run if run.is_dir() else Path("runs") / run
    path = folder / BOARD_FILE
    if not path.is_file():
        raise ConfigurationError(
            f"{run} has no {BOARD_FILE}; give the run folder of a build, such as runs/NAME, that has begun its search"
        )
    board = Leaderboard.load(path)
    if html is not None:
        from open_autoglm.search.leaderboard_page import write_leaderboard_page

        write_leaderboard_page(board, html, name=folder.resolve().name)
    if as_json:
        print_json({**asdict(board), "entries": [asdict(row) for row in board.ranked()], "verdict": board.verdict()})
        return
    print_board(board)
    if html is not None:
        print_line(f"page: {html}")


def print_board(board: Leaderboard) -> None:
    """The table and what it says."""
    print_table(
        f"Leaderboard ({board.metric} on the validation split)",
        ("model", "score", "95% interval", "parameters", "one answer", "seconds"),
        [
            (
                row.name if row.state == "complete" else f"{row.name} ({row.state})",
                "" if row.score is None else f"{row.score:.4f}",
                "" if row.interval is None else f"{row.interval[0]:.4f}–{row.interval[1]:.4f}",
                "" if row.parameters is None else f"{row.parameters / 1e6:.2f}M",
                "" if row.latency_ms is None else f"{row.latency_ms:.2f} ms",
                f"{row.seconds:.1f}",
            )
            for row in board.ranked()
        ],
    )
    print_line(board.verdict())
