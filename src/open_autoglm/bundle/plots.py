# SPDX-License-Identifier: Apache-2.0
"""The plots of a model card as SVG: bars and one line, drawn here so that a bundle needs no plotting library.

The same numbers give the same bytes. The files hold no script and refer to nothing outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

_WIDTH: Final = 640
_BAR: Final = 20
_GAP: Final = 10
_LEFT: Final = 190
_RIGHT: Final = 100
_TOP: Final = 44
_INK: Final = "#24292f"
_SOFT: Final = "#6e7781"
_FILL: Final = "#2f6fb2"
_FONT: Final = "font-family='system-ui, sans-serif'"
_LABEL_LENGTH: Final = 28


def draw_bars(title: str, bars: Sequence[tuple[str, float]], *, unit: str = "", digits: int = 3) -> str:
    """Horizontal bars with their values. bars: names and finite numbers of at least 0; digits: after the point."""
    height = _TOP + len(bars) * (_BAR + _GAP) + _GAP
    longest = max((value for _, value in bars), default=0.0) or 1.0
    room = _WIDTH - _LEFT - _RIGHT
    parts = []
    for index, (name, value) in enumerate(bars):
        y = _TOP + index * (_BAR + _GAP)
        width = max(1.0, room * max(0.0, value) / longest)
        text = f"{value:.{digits}f}{' ' + unit if unit else ''}"
        parts.append(
            f"<text x='{_LEFT - 8}' y='{y + 15}' text-anchor='end' font-size='13' fill='{_INK}'>{_text(name)}</text>"
            f"<rect x='{_LEFT}' y='{y}' width='{width:.1f}' height='{_BAR}' rx='2' fill='{_FILL}'/>"
            f"<text x='{_LEFT + width + 6:.1f}' y='{y + 15}' font-size='13' fill='{_INK}'>{_text(text)}</text>"
        )
    return _page(title, height, parts)


def draw_curve(title: str, points: Sequence[tuple[float, float]], *, x_name: str, y_name: str) -> str:
    """One line through finite points, in their order, with its extremes written at the axes."""
    height, bottom, right = 320, 270, _WIDTH - 30
    left = 70
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_low, x_high = min(xs, default=0.0), max(xs, default=1.0)
    y_low, y_high = min(ys, default=0.0), max(ys, default=1.0)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0
    places = " ".join(
        f"{left + (x - x_low) / x_span * (right - left):.1f},{bottom - (y - y_low) / y_span * (bottom - _TOP):.1f}"
        for x, y in points
    )
    parts = [
        f"<path d='M{left} {_TOP}V{bottom}H{right}' fill='none' stroke='{_SOFT}'/>",
        f"<polyline points='{places}' fill='none' stroke='{_FILL}' stroke-width='2'/>",
        *(
            f"<text x='{x}' y='{y}' text-anchor='{anchor}' font-size='12' fill='{_SOFT}'>{_text(text)}</text>"
            for x, y, anchor, text in (
                (left - 6, _TOP + 10, "end", _number(y_high)),
                (left - 6, bottom, "end", _number(y_low)),
                (left, bottom + 18, "start", _number(x_low)),
                (right, bottom + 18, "end", _number(x_high)),
                ((left + right) / 2, bottom + 36, "middle", x_name),
                (left, _TOP - 8, "start", y_name),
            )
        ),
    ]
    return _page(title, height, parts)


def _page(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height}' "
        f"viewBox='0 0 {_WIDTH} {height}' role='img' {_FONT}>\n"
        f"<title>{_text(title, 200)}</title>\n<rect width='100%' height='100%' fill='#ffffff'/>\n"
        f"<text x='16' y='24' font-size='15' font-weight='600' fill='{_INK}'>{_text(title, 200)}</text>\n"
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(text: str, length: int = _LABEL_LENGTH) -> str:
    """Text of any origin as the content of an element."""
    short = text if len(text) <= length else text[: length - 1] + "…"
    return escape("".join(character if character.isprintable() else " " for character in short))


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 or value == math.floor(value) else f"{value:.3g}"
