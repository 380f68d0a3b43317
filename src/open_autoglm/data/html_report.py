# SPDX-License-Identifier: Apache-2.0
"""The data report as one page to look at: `report.html`, with its plots inside, and `report.json` beside it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from open_autoglm.data.example import Example
from open_autoglm.data.findings import Finding, FindingKind
from open_autoglm.data.languages import detect_language
from open_autoglm.data.privacy import mask_private
from open_autoglm.data.report_plots import MOST_BARS, TITLES, Bars, describe_plots, is_removal
from open_autoglm.storage import write_atomic, write_json
from open_autoglm.version import __version__

if TYPE_CHECKING:
    from open_autoglm.data.preparation import PreparedData

_PART: Final = re.compile(r"(train(ing)?|data(set)?)\b", re.IGNORECASE)
_TEMPLATE: Final = "report_template.html"
_THEME: Final = "page_theme.css"
_SHOWN: Final = 3
_SHOWN_CHARACTERS: Final = 400
_READ_CHARACTERS: Final = 20_000
_ROWS_CHARACTERS: Final = 600
_MOST_FILES: Final = 20
_MOST_FIELDS: Final = 100
_MOST_FINDINGS: Final = 40
_PLOT_HEIGHT: Final = 96
_TICKS: Final = 4
_FEW_BARS: Final = 8
_TWINS_SOUGHT: Final = 5000
_GRAVE: Final = frozenset((FindingKind.LEAK, FindingKind.CONTRADICTION, FindingKind.PRIVATE, FindingKind.UNSEEN))
_HARMLESS: Final = frozenset((FindingKind.REPAIR, FindingKind.DUPLICATE, FindingKind.SHORTENED))
_MEANINGS: Final[dict[FindingKind, str]] = {
    FindingKind.LEAK: "A model that has seen a test question in training scores higher than it deserves.",
    FindingKind.CONTRADICTION: "No model can be right about both; look at which answer is meant.",
    FindingKind.PRIVATE: "A model can repeat what it has learnt. Masked in this page; --mask-pii masks it in the data.",
    FindingKind.DROP: "These rows teach nothing as they are, and are in no split.",
    FindingKind.UNSEEN: "The model cannot give a label that it has never seen; these rows count as wrong.",
    FindingKind.DUPLICATE: "The same row several times only weighs more; one of each is enough.",
    FindingKind.NEAR_DUPLICATE: "Such rows stay on one side of the split. --remove-near-duplicates takes them out.",
    FindingKind.DOUBTFUL: "Kept, but worth reading: a model learns to stop short from answers that do.",
    FindingKind.OUTLIER: "Kept, but far from all others: often two rows run together, or a paste that went wrong.",
    FindingKind.SHORTENED: "The middle of the input is left out so that the answer fits.",
    FindingKind.REPAIR: "Set right while reading; nothing was lost.",
}


def write_reports(prepared: PreparedData, folder: Path) -> Path:
    """Write `report.json` and `report.html` into a folder; returns the page. Raises StorageError.

    The page asks nothing of the network, runs no script and shows all text of the data as text; in its examples,
    personal data and secrets are masked even where the data keeps them.
    """
    page = folder / "report.html"
    plots = describe_plots(prepared)
    write_json(folder / "report.json", describe_report(prepared, plots))
    write_atomic(page, render_report(prepared, plots).encode("utf-8", "replace"))
    return page


def describe_report(prepared: PreparedData, plots: Mapping[str, Bars] | None = None) -> dict[str, Any]:
    """All that `report.json` holds, JSON-ready; docs/data-report.md says what each key means.

    `DataReport.from_dict` reads the report proper back.
    """
    language = detect_language(f"{example.input_text} {example.answer}" for example in prepared.train)
    return {
        **prepared.report.to_dict(),
        "languages": language.to_dict(),
        "digest": prepared.digest(),
        "output_schema": prepared.task.to_dict(),
        "plots": dict(plots or describe_plots(prepared)),
    }


def render_report(prepared: PreparedData, plots: Mapping[str, Bars] | None = None) -> str:
    """The page."""
    from jinja2 import Environment, StrictUndefined

    source = files("open_autoglm.data").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    report = prepared.report
    plots = plots or describe_plots(prepared)
    language = detect_language(f"{example.input_text} {example.answer}" for example in prepared.train)
    lengths = [("Length of inputs", "input", plots["input_lengths"])]
    if not report.output.get("counts"):
        lengths.append(("Length of answers", "answer", plots["answer_lengths"]))
    fields = list((report.output.get("fields") or {}).items())
    return environment.from_string(source).render(
        theme=page_theme(),
        report=report,
        name=_title(Path(report.files[0].path)) if report.files else "data",
        language=language,
        confidence=round(100 * report.confidence),
        files=[
            {
                "path": _cut(file.path, 200),
                "about": f"{file.split} · {file.format} · {file.encoding} · {file.rows:,} rows",
                "columns": _cut(", ".join(file.columns)),
                "ignored": _cut(", ".join(file.ignored)),
            }
            for file in report.files
        ],
        splits=_shares(report.split_sizes.items()),
        rows=_shares(plots["rows"]) if len(plots["rows"]) > 1 else [],
        lengths=[
            {"title": title, "columns": _columns(bars), "ticks": _ticks(bars), "quantiles": report.lengths[name]}
            for title, name, bars in lengths
            if len(bars) >= _FEW_BARS
        ],
        height=_PLOT_HEIGHT,
        bars=[
            *((title, "characters, training examples", _bars(bars)) for title, _, bars in lengths if _is_worth(bars)),
            *([("Labels", "training examples", _bars(plots["labels"]))] if plots["labels"] else []),
            ("Languages", "of a sample", _bars(plots["languages"])),
        ],
        fields=fields[:_MOST_FIELDS],
        more_fields=max(0, len(fields) - _MOST_FIELDS),
        problems=_problems(prepared),
        samples=[_shown(example) for example in prepared.train[:_SHOWN]],
        version=__version__,
    )


def page_theme() -> str:
    """The style sheet that all our pages begin with."""
    return files("open_autoglm.data").joinpath(_THEME).read_text(encoding="utf-8").strip()


def _title(path: Path) -> str:
    """A file's name, with its folder's where it is the training file of one."""
    is_part = _PART.match(path.name) is not None
    return f"{path.resolve().parent.name}/{path.name}" if is_part else path.name


def _is_worth(bars: Bars) -> bool:
    """Whether a few lengths are shown at all, as bars with their names: inputs of running text have none."""
    return len(bars) < _FEW_BARS and any(name != "0" for name, _ in bars)


def _bars(items: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """Names and counts as bars, their widths in percent of the longest, their shares in percent of all."""
    listed = list(items)
    rest = listed[-1][0] if len(listed) > MOST_BARS else None
    most = max((count for name, count in listed if name != rest), default=0) or 1
    total = sum(count for _, count in listed) or 1
    return [
        {
            "name": _cut(str(name), 60),
            "count": count,
            "width": 0 if name == rest else round(100 * count / most, 2),
            "share": 100 * count / total,
        }
        for name, count in listed
    ]


def _shares(items: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """Parts of a whole, one after the other: where each starts and how wide it is, in percent."""
    listed = [(name, count) for name, count in items if count]
    total = sum(count for _, count in listed) or 1
    parts: list[dict[str, Any]] = []
    start = 0.0
    for name, count in listed:
        width = 100 * count / total
        parts.append({"name": name, "count": count, "start": round(start, 3), "width": round(width, 3)})
        start += width
    return parts


def _columns(bars: Bars) -> list[dict[str, Any]]:
    """A histogram as columns: place and width in percent, height in pixels; what is not nothing can be seen."""
    most = max((count for _, count in bars), default=0) or 1
    step = 100 / max(1, len(bars))
    gap = min(0.6, step / 5)
    return [
        {
            "name": name,
            "count": count,
            "x": round(place * step + gap / 2, 3),
            "width": round(step - gap, 3),
            "height": max(2, round(_PLOT_HEIGHT * count / most)) if count else 0,
        }
        for place, (name, count) in enumerate(bars)
    ]


def _ticks(bars: Bars) -> list[str]:
    """The lengths below a histogram: the lower ends of some columns, evenly apart, and the longest."""
    if len(bars) <= _TICKS:
        return [name for name, _ in bars]
    names = [bars[round(part * (len(bars) - 1) / _TICKS)][0] for part in range(_TICKS)]
    return [*(name.partition("–")[0] for name in names), bars[-1][0].rpartition("–")[2]]


def _problems(prepared: PreparedData) -> list[dict[str, Any]]:
    """The findings by kind, the gravest first, each with its rows and some of their texts."""
    wanted = {source for finding in prepared.report.findings for source in _first_sources(finding)}
    splits = itertools.chain(prepared.test, prepared.valid, prepared.train)
    known = {example.source: example for example in splits if example.source in wanted}
    for line in prepared.changes:
        if line["change"] == "removed" and line["example"]["source"] in wanted:
            known.setdefault(line["example"]["source"], Example.from_dict(line["example"]))
    twins: dict[str, list[Example]] = {}
    for example in known.values():
        twins.setdefault(_asked(example), []).append(example)
    problems: list[dict[str, Any]] = []
    for kind, title in TITLES.items():
        found = prepared.report.of_kind(kind)
        if found:
            shown: set[str] = set()
            problems.append(
                {
                    "title": title,
                    "gravity": "grave" if kind in _GRAVE else "harmless" if kind in _HARMLESS else "notable",
                    "meaning": _MEANINGS[kind],
                    "count": sum(finding.count for finding in found),
                    "findings": [_problem(finding, known, twins, shown) for finding in found[:_MOST_FINDINGS]],
                    "more": max(0, len(found) - _MOST_FINDINGS),
                }
            )
    return problems


def _problem(
    finding: Finding, known: Mapping[str, Example], twins: Mapping[str, Sequence[Example]], shown: set[str]
) -> dict[str, Any]:
    """A finding with some of its rows that were not `shown` yet, beside the rows that they contradict or repeat."""
    listed = list(finding.rows.items())
    examples: list[dict[str, Any]] = []
    for source in _first_sources(finding):
        if source not in known or source in shown:
            continue
        shown.add(source)
        card = _shown(known[source])
        others = [other for other in twins.get(_asked(known[source]), ())[:_TWINS_SOUGHT] if other.source != source]
        if finding.kind is FindingKind.CONTRADICTION:
            card["others"] = [
                _shown(other) for other in others if other.answer != known[source].answer and other.source not in shown
            ][:2]
            shown.update(other.source for other in others)
        elif finding.kind is FindingKind.DUPLICATE and others:
            card["same"] = others[0].source.rpartition(":")[2]
        examples.append(card)
    return {
        "what": finding.what,
        "count": finding.count,
        "removed": is_removal(finding),
        "rows": [(file, _cut(rows, _ROWS_CHARACTERS)) for file, rows in listed[:_MOST_FILES]],
        "more": max(0, len(listed) - _MOST_FILES),
        "examples": examples,
    }


def _first_sources(finding: Finding) -> list[str]:
    sources: list[str] = []
    for file, rows in list(finding.rows.items())[:_SHOWN]:
        for part in rows.split(", ")[:_SHOWN]:
            first, _, last = part.partition("-")
            if first.isdigit():
                numbers = range(int(first), int(last or first) + 1)[:_SHOWN]
                sources.extend(f"{file}:{number}" for number in numbers)
    return sources[:_SHOWN]


def _shown(example: Example) -> dict[str, Any]:
    file, _, row = example.source.rpartition(":")
    return {
        "file": file,
        "row": row,
        "input": _cut(mask_private(_asked(example)[:_READ_CHARACTERS])),
        "answer": _cut(mask_private(example.messages[-1].readable[:_READ_CHARACTERS])),
        "rejected": _cut(mask_private("\n".join(m.readable for m in example.rejected)[:_READ_CHARACTERS])),
    }


def _asked(example: Example) -> str:
    return "\n".join(message.readable for message in example.prompt)


def _cut(text: str, limit: int = _SHOWN_CHARACTERS) -> str:
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} … {text[-limit // 3 :]}"
