# SPDX-License-Identifier: Apache-2.0
"""The leaderboard as one page to look at, with its plots inside; it asks nothing of the network and runs no script."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from open_autoglm.data.html_report import page_theme
from open_autoglm.search.leaderboard import Entry, Leaderboard
from open_autoglm.search.svg_plot import Line, Point, draw
from open_autoglm.storage import write_atomic
from open_autoglm.version import __version__

_TEMPLATE: Final = "leaderboard_template.html"
_PARTS: Final = {"final": 0, "trial": 2, "baseline": 1}
_MOST_CURVES: Final = 12


def write_leaderboard_page(board: Leaderboard, path: Path, *, name: str) -> None:
    """Write the page. name: of the run. Raises StorageError when the disk refuses."""
    write_atomic(path, render_leaderboard(board, name=name))


def render_leaderboard(board: Leaderboard, *, name: str) -> str:
    """The page. name: of the run."""
    from jinja2 import Environment, StrictUndefined

    source = files("open_autoglm.search").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    final = board.final()
    return environment.from_string(source).render(
        theme=page_theme(),
        name=name,
        board=board,
        verdict=board.verdict(),
        final=final,
        rows=[_row(place, entry) for place, entry in enumerate(board.ranked(), start=1)],
        plots=[plot for plot in _plots(board) if plot["svg"]],
        front=_front_rows(board.front),
        version=__version__,
    )


def describe_size(size: int | None) -> str:
    """Bytes as megabytes, or nothing."""
    return "" if size is None else f"{size / 1e6:.2f} MB"


def _row(place: int, entry: Entry) -> dict[str, Any]:
    choices = ", ".join(f"{key} {_plain(value)}" for key, value in entry.choices.items())
    return {
        "place": place,
        "name": entry.name,
        "kind": entry.kind,
        "part": _PARTS[entry.kind],
        "score": "" if entry.score is None else f"{entry.score:.4f}",
        "interval": "" if entry.interval is None else f"{entry.interval[0]:.4f} – {entry.interval[1]:.4f}",
        "loss": "" if entry.valid_loss is None else f"{entry.valid_loss:.3f}",
        "parameters": "" if entry.parameters is None else f"{entry.parameters / 1e6:.2f}M",
        "size": describe_size(entry.size_bytes),
        "latency": "" if entry.latency_ms is None else f"{entry.latency_ms:.2f} ms",
        "seconds": f"{entry.seconds:.1f} s",
        "state": entry.state,
        "choices": choices,
    }


def _plots(board: Leaderboard) -> list[dict[str, str]]:
    measured = [row for row in board.entries if row.score is not None and row.latency_ms is not None]
    points = [
        Point(
            row.latency_ms or 0.0,
            row.score or 0.0,
            f"{row.name}: {board.metric} {row.score:.4f}, {row.latency_ms:.2f} ms",
            _PARTS[row.kind],
            *(row.interval or (None, None)),
        )
        for row in measured
    ]
    trained = [row for row in board.entries if len(row.curve) > 1][:_MOST_CURVES]
    curves = [Line(row.curve, row.name, 0 if row.kind == "final" else place) for place, row in enumerate(trained, 1)]
    plots = [
        {
            "title": "Quality and latency",
            "about": f"{board.metric} on the validation split with its 95% interval; one answer alone, on the engine",
            "svg": draw(
                points, title="Quality and latency", x_label="ms for one answer", y_label=board.metric, is_log=True
            ),
        },
        {
            "title": "Learning curves",
            "about": "validation loss in nats for each example",
            "svg": draw(
                lines=curves,
                title="Learning curves",
                x_label="seconds of training",
                y_label="validation loss",
                is_log=True,
            ),
        },
    ]
    if board.front:
        plots.append(
            {
                "title": "Pareto front of the architectures",
                "about": "predicted by the evolution; what was trained is in another colour",
                "svg": draw_front(board.front),
            }
        )
    return plots


def draw_front(front: dict[str, Any], *, standalone: bool = False) -> str:
    """The Pareto front of an evolution, and all that it looked at. front: `ParetoFront.to_dict`."""
    others = [Point(at, loss, "seen by the evolution", 5) for at, loss in front.get("seen", ())]
    points = [
        Point(
            member["latency_ms"],
            member["loss"],
            f"{member['layers']} layers of {member['hidden_size']}: {member['latency_ms']:.2f} ms, "
            f"{member['size_mb']:.2f} MB",
            1 if member["chosen"] else 0,
        )
        for member in front["members"]
    ]
    return draw(
        [*others, *points],
        title="Pareto front",
        x_label="ms for one answer (from measurements)",
        y_label="predicted loss",
        is_log=True,
        standalone=standalone,
    )


def _front_rows(front: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [] if front is None else list(front["members"])


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
