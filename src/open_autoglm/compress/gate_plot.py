# SPDX-License-Identifier: Apache-2.0
"""The gate's decision as a picture: size, speed and metric of each format, as plain SVG."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Final

from open_autoglm.compress.gate import Decision, Trial

_ROW: Final = 26
_NAME: Final = 90
_BAR: Final = 150
_PANEL: Final = 240
_TOP: Final = 46


def draw(decision: Decision, metric: str) -> str:
    """The picture. metric: its name."""
    trials = sorted(decision.trials, key=lambda trial: (trial.format.bits, trial.loss))
    panels: list[tuple[str, Callable[[Trial], float], Callable[[Trial], str]]] = [
        ("size", lambda trial: trial.size, lambda trial: f"{trial.size / 1e6:.2f} MB"),
        (
            "time of a token on the engine",
            lambda trial: trial.latency.milliseconds_per_token if trial.latency else 0.0,
            lambda trial: f"{trial.latency.milliseconds_per_token:.2f} ms" if trial.latency else "not measured",
        ),
        (metric, lambda trial: trial.metric, lambda trial: f"{trial.metric:.4f} ({trial.loss:+.2%} lost)"),
    ]
    width, height = _NAME + _PANEL * len(panels), _TOP + _ROW * len(trials) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="8" y="16" font-size="13">{escape(decision.chosen.format.name)} is served by default '
        f"(tolerance {decision.tolerance:.2%})</text>",
    ]
    for row, trial in enumerate(trials):
        weight = "bold" if trial is decision.chosen else "normal"
        place = _TOP + _ROW * row + 12
        parts.append(f'<text x="8" y="{place}" font-weight="{weight}">{escape(trial.format.name)}</text>')
    for column, (title, value, text) in enumerate(panels):
        left = _NAME + _PANEL * column
        largest = max((value(trial) for trial in trials), default=0.0) or 1.0
        parts.append(f'<text x="{left}" y="36" fill="#555">{escape(title)}</text>')
        for row, trial in enumerate(trials):
            top = _TOP + _ROW * row
            colour = "#2b6cb0" if trial is decision.chosen else "#a0aec0" if trial.accepted else "#fc8181"
            length = max(1.0, _BAR * value(trial) / largest)
            parts.append(f'<rect x="{left}" y="{top}" width="{length:.1f}" height="9" fill="{colour}"/>')
            parts.append(f'<text x="{left}" y="{top + 20}" fill="#333">{escape(text(trial))}</text>')
    return "".join([*parts, "</svg>\n"])
