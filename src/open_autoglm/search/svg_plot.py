# SPDX-License-Identifier: Apache-2.0
"""Small plots as SVG, for pages without scripts: points with error bars, and lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 640
_HEIGHT: Final = 300
_LEFT: Final = 58
_RIGHT: Final = 14
_TOP: Final = 12
_BOTTOM: Final = 42
_STYLE: Final = """
svg { background: #fff; font: 13px system-ui, sans-serif; }
.axis { stroke: #c3c9d0; } .grid-line { stroke: #eceef1; } text { fill: #5c6670; }
.part-0 { fill: #2f6fde; stroke: #2f6fde; } .part-1 { fill: #e08a1e; stroke: #e08a1e; }
.part-2 { fill: #2f9e6e; stroke: #2f9e6e; } .part-3 { fill: #8a63d2; stroke: #8a63d2; }
.part-4 { fill: #d6457a; stroke: #d6457a; } .part-5 { fill: #7b8794; stroke: #7b8794; }
polyline { fill: none !important; stroke-width: 2; } .bar { stroke-width: 1; opacity: .5; }
"""


@dataclass(frozen=True)
class Point:
    """A mark. label: what is told of it. part: which of the page's six colours. low, high: the bounds of its y."""

    x: float
    y: float
    label: str
    part: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A line through points. part: which of the page's six colours."""

    points: Sequence[tuple[float, float]]
    label: str
    part: int = 0


def draw(
    points: Sequence[Point] = (),
    lines: Sequence[Line] = (),
    *,
    title: str,
    x_label: str,
    y_label: str,
    is_log: bool = False,
    standalone: bool = False,
) -> str:
    """A plot as one SVG element.

    is_log: the x axis is logarithmic; what is not above zero is left out then. standalone: with its own colours, as a
    file needs them. Empty text when there is nothing to draw.
    """
    points = [point for point in points if _fits(point.x, point.y, is_log)]
    lines = [Line([p for p in line.points if _fits(*p, is_log)], line.label, line.part) for line in lines]
    xs = [point.x for point in points] + [x for line in lines for x, _ in line.points]
    ys = [point.y for point in points] + [y for line in lines for _, y in line.points]
    ys += [bound for point in points for bound in (point.low, point.high) if bound is not None and math.isfinite(bound)]
    if not xs:
        return ""
    across, up = _Axis(xs, _LEFT, _WIDTH - _RIGHT, is_log=is_log), _Axis(ys, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{"100%" if not standalone else _WIDTH}"><title>{escape(title)}</title>'
    ]
    if standalone:
        parts.append(f"<style>{_STYLE}</style>")
    for value in up.ticks():
        y = up.at(value)
        parts.append(f'<line class="grid-line" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in across.ticks():
        parts.append(
            f'<text x="{across.at(value):.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{_short(value)}</text>'
        )
    floor = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{_LEFT + 4}" y="{_TOP + 8}">{escape(y_label)}</text>')
    for line in lines:
        if len(line.points) > 1:
            path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line.points)
            parts.append(
                f'<polyline class="part-{line.part % 6}" points="{path}"><title>{escape(line.label)}</title></polyline>'
            )
    for point in points:
        x, kind = across.at(point.x), f"part-{point.part % 6}"
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line class="bar {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{up.at(point.low):.1f}" '
                f'y2="{up.at(point.high):.1f}"/>'
            )
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{up.at(point.y):.1f}" r="5">'
            f"<title>{escape(point.label)}</title></circle>"
        )
    return "".join([*parts, "</svg>"])


class _Axis:
    """From values to places on the picture, with a little room at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, is_log: bool = False) -> None:
        self._is_log = is_log
        scaled = [self._scale(value) for value in values]
        low, high = min(scaled), max(scaled)
        room = 0.06 * (high - low) or max(0.05, abs(high) * 0.1)
        self._low, self._high = low - room, high + room
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (self._scale(value) - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values, about five of them."""
        if self._is_log:
            decades = range(math.floor(self._low), math.ceil(self._high) + 1)
            found = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
            kept = [value for value in found if self._low <= math.log10(value) <= self._high]
            return kept if len(kept) <= 8 else [value for value in kept if f"{value:e}"[0] == "1"]
        raw = (self._high - self._low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
        first = math.ceil(self._low / step)
        return [round(place * step, 12) for place in range(first, math.floor(self._high / step) + 1)]

    def _scale(self, value: float) -> float:
        return math.log10(value) if self._is_log else value


def _fits(x: float, y: float, is_log: bool) -> bool:
    return math.isfinite(x) and math.isfinite(y) and (x > 0 or not is_log)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
