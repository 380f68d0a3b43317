# SPDX-License-Identifier: Apache-2.0
"""A pipeline as a picture: lines for a terminal, Mermaid for a page of Markdown, SVG for everything else."""

from __future__ import annotations

from html import escape
from typing import Final

from open_autoglm.pipeline.specification import PipelineSpecification, StageSpecification

_BOX_HEIGHT: Final = 44
_ROW_GAP: Final = 20
_COLUMN_GAP: Final = 60
_MARGIN: Final = 16
_LETTER: Final = 7.6
_COLOURS: Final = {
    "waiting": "#e8eaed",
    "running": "#cfe2ff",
    "done": "#d1e7dd",
    "failed": "#f8d7da",
    "retried": "#fff3cd",
    "cancelled": "#d3d3d4",
}


def layers(specification: PipelineSpecification) -> list[list[StageSpecification]]:
    """The stages by how many others come before them at least: all in one layer could run side by side."""
    depth: dict[str, int] = {}
    needs = specification.needs
    for stage in specification.order:
        depth[stage.stage] = max((depth[need] + 1 for need in needs[stage.stage]), default=0)
    found: list[list[StageSpecification]] = [[] for _ in range(max(depth.values()) + 1)]
    for stage in specification.order:
        found[depth[stage.stage]].append(stage)
    return found


def draw_lines(specification: PipelineSpecification) -> list[tuple[str, str, str, str]]:
    """A row for each stage: the number of its layer, its name, what it does, and what it needs."""
    needs = specification.needs
    return [
        (str(number), stage.stage, _what(stage), ", ".join(needs[stage.stage]))
        for number, layer in enumerate(layers(specification), 1)
        for stage in layer
    ]


def draw_mermaid(specification: PipelineSpecification) -> str:
    """A Mermaid flow chart."""
    number = {stage.stage: index for index, stage in enumerate(specification.order)}
    lines = ["flowchart LR"]
    for name, index in number.items():
        stage = specification.stage(name)
        lines.append(f'    n{index}["{_mermaid(name)}<br/><small>{_mermaid(_what(stage))}</small>"]')
    for name, needs in specification.needs.items():
        lines += [f"    n{number[need]} --> n{number[name]}" for need in needs]
    return "\n".join(lines) + "\n"


def draw_svg(specification: PipelineSpecification, states: dict[str, str] | None = None) -> str:
    """An SVG of boxes and arrows, from left to right. states: of stages, shown by the colour of their boxes."""
    boxes: dict[str, tuple[float, float, float]] = {}
    columns = layers(specification)
    x = float(_MARGIN)
    height = max(len(column) for column in columns) * (_BOX_HEIGHT + _ROW_GAP) - _ROW_GAP + 2 * _MARGIN
    for column in columns:
        width = max(max(len(stage.stage), len(_what(stage))) for stage in column) * _LETTER + 24
        free = height - len(column) * (_BOX_HEIGHT + _ROW_GAP) + _ROW_GAP
        for row, stage in enumerate(column):
            boxes[stage.stage] = (x, free / 2 + row * (_BOX_HEIGHT + _ROW_GAP), width)
        x += width + _COLUMN_GAP
    width = x - _COLUMN_GAP + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" font-family="ui-monospace, monospace" font-size="13">',
        f"<title>{escape(specification.name)}</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#6c757d"/></marker></defs>',
    ]
    for name, needs in specification.needs.items():
        for need in needs:
            start_x, start_y = boxes[need][0] + boxes[need][2], boxes[need][1] + _BOX_HEIGHT / 2
            end_x, end_y = boxes[name][0], boxes[name][1] + _BOX_HEIGHT / 2
            middle = (start_x + end_x) / 2
            parts.append(
                f'<path d="M{start_x:.1f} {start_y:.1f} C{middle:.1f} {start_y:.1f} {middle:.1f} {end_y:.1f} '
                f'{end_x:.1f} {end_y:.1f}" fill="none" stroke="#6c757d" marker-end="url(#head)"/>'
            )
    for name, (left, top, box_width) in boxes.items():
        fill = _COLOURS.get((states or {}).get(name, ""), "#ffffff")
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{box_width:.1f}" height="{_BOX_HEIGHT}" rx="6" fill="{fill}" '
            f'stroke="#495057"/><text x="{left + 12:.1f}" y="{top + 19:.1f}" font-weight="bold">{escape(name)}</text>'
            f'<text x="{left + 12:.1f}" y="{top + 35:.1f}" fill="#495057">'
            f"{escape(_what(specification.stage(name)))}</text>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _what(stage: StageSpecification) -> str:
    text = stage.module
    if stage.for_each is not None:
        text += f" x {stage.for_each.items}/{stage.for_each.batch}"
    return text + (" ?" if stage.when is not None else "")


def _mermaid(text: str) -> str:
    return escape(text).replace("#", "&num;")
