# SPDX-License-Identifier: Apache-2.0
"""What a bundle says to people: the model card, its plots, and a summary of the data report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

import yaml

from open_autoglm.bundle.manifest import BundleManifest
from open_autoglm.bundle.plots import draw_bars, draw_curve
from open_autoglm.storage import write_atomic, write_json
from open_autoglm.task import TaskKind

CARD_FILE: Final = "README.md"
DATA_REPORT_FILE: Final = "data_report.json"
METRICS_PLOT: Final = "plots/metrics.svg"
SIZES_PLOT: Final = "plots/sizes.svg"
LEARNING_PLOT: Final = "plots/learning.svg"
_REPORT_KEYS: Final = (
    "version",
    "task",
    "confidence",
    "reason",
    "runner_up",
    "language",
    "lengths",
    "split_sizes",
    "split_by",
    "rows_read",
    "counts",
    "output",
)
_MOST_LABELS: Final = 50
_LANGUAGES: Final = ("en", "zh")


def summarise_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """The data report without what a bundle should not tell: folders, and the numbers of single rows.

    report: `DataReport.to_dict()`. Returns the same keys, of each file its name and shape, of each finding what was
    found and how often.
    """
    return {
        **{key: report[key] for key in _REPORT_KEYS if key in report},
        "files": [
            {**{key: value for key, value in file.items() if key != "path"}, "name": PurePath(str(file["path"])).name}
            for file in report.get("files", ())
        ],
        "findings": [
            {"kind": finding["kind"], "what": finding["what"], "count": finding["count"]}
            for finding in report.get("findings", ())
        ],
    }


def write_data_report(folder: Path, report: Mapping[str, Any]) -> str:
    """Write the summary of a data report into a bundle's files. Returns its name. Raises StorageError."""
    write_json(folder / DATA_REPORT_FILE, summarise_report(report))
    return DATA_REPORT_FILE


def write_model_card(
    folder: Path,
    manifest: BundleManifest,
    report: Mapping[str, Any],
    *,
    sizes: Mapping[str, int] | None = None,
    curve: Sequence[Mapping[str, float]] = (),
) -> None:
    """Write `README.md` and the plots that it shows, from the manifest and the data report.

    sizes: bytes of the weights by their form; those of the quantisations if not given. curve: of the training, rows
    with `step` and `valid_loss`. Raises StorageError when the disk refuses.
    """
    weights = dict(sizes or {name: record.size for name, record in manifest.quantizations.items()})
    plots = _write_plots(folder, manifest, weights, curve)
    text = "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(manifest, report), sort_keys=False, allow_unicode=True).rstrip("\n"),
            "---",
            *_introduction(manifest),
            *_results(manifest, weights, plots),
            *_use(manifest),
            *_data(manifest, report),
            *_origin(manifest),
            "## Limits",
            "The model knows this one task and nothing else; what it has not seen in training, it may get wrong. "
            "The figures above hold for data like the test split.",
            "",
        ]
    )
    write_atomic(folder / CARD_FILE, text)


def _write_plots(
    folder: Path, manifest: BundleManifest, weights: Mapping[str, int], curve: Sequence[Mapping[str, float]]
) -> list[tuple[str, str]]:
    """Draw what there is. Returns the plots as title and file."""
    drawn: list[tuple[str, str, str]] = []
    shares = [(name, value) for name, value in sorted(manifest.metrics.items()) if 0 <= value <= 1]
    if shares:
        drawn.append(("Metrics", METRICS_PLOT, draw_bars("Metrics", shares)))
    if weights:
        bars = [(name, size / 1e6) for name, size in weights.items()]
        drawn.append(("Size of the weights", SIZES_PLOT, draw_bars("Size of the weights", bars, unit="MB", digits=2)))
    points = [(float(row["step"]), float(row["valid_loss"])) for row in curve if "valid_loss" in row]
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) > 1:
        svg = draw_curve("Validation loss", points, x_name="step", y_name="nats per example")
        drawn.append(("Validation loss", LEARNING_PLOT, svg))
    for _, name, svg in drawn:
        write_atomic(folder / name, svg)
    return [(title, name) for title, name, _ in drawn]


def _front_matter(manifest: BundleManifest, report: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(manifest.task["kind"])
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["glm", "open-autoglm", kind.replace("_", "-")],
    }
    if report.get("language") in _LANGUAGES:
        found["language"] = report["language"]
    if manifest.license is not None:
        # Hubs know a list of names; whatever is not a plain SPDX identifier goes by its own name there.
        is_custom = manifest.license.startswith("LicenseRef-") or " " in manifest.license
        found["license"] = "other" if is_custom else manifest.license.lower()
        if is_custom:
            found["license_name"] = manifest.license
    return found


def _introduction(manifest: BundleManifest) -> list[str]:
    return [
        f"# {_inline(manifest.name)}",
        "",
        f"A `{_code(manifest.architecture)}` of {manifest.parameters / 1e6:.2f} million parameters for "
        f"**{_inline(str(manifest.task['kind']).replace('_', ' '))}**, built by Open-AutoGLM from the user's own data.",
        "",
    ]


def _results(manifest: BundleManifest, weights: Mapping[str, int], plots: Sequence[tuple[str, str]]) -> list[str]:
    lines = ["## Results", "| metric | value |", "| --- | --- |"]
    lines += [f"| {_inline(name)} | {value:.4f} |" for name, value in sorted(manifest.metrics.items())]
    lines += ["", "| weights | size | metric before | metric after |", "| --- | --- | --- | --- |"]
    for name, size in weights.items():
        record = manifest.quantizations.get(name)
        before, after = (None, None) if record is None else (record.metric_before, record.metric_after)
        figures = ["" if value is None else f"{value:.4f}" for value in (before, after)]
        served = " (served by default)" if name == manifest.default_weights else ""
        lines.append(f"| {_inline(name)}{served} | {size / 1e6:.2f} MB | {figures[0]} | {figures[1]} |")
    lines.append("")
    for title, name in plots:
        lines += [f"![{title}]({name})", ""]
    return lines


def _use(manifest: BundleManifest) -> list[str]:
    lines = [
        "## Use",
        "```",
        "open-autoglm verify .",
        "open-autoglm serve .",
        "```",
        'or with transformers: `AutoModelForCausalLM.from_pretrained(".")`.',
        "",
    ]
    labels = [str(label) for label in manifest.task.get("labels") or ()]
    if labels:
        shown = ", ".join(f"`{_code(label)}`" for label in labels[:_MOST_LABELS])
        more = f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
        lines += [f"Answers are one of {len(labels)} labels: {shown}{more}.", ""]
    elif manifest.task.get("answer_schema") is not None and manifest.task["kind"] == TaskKind.EXTRACTION:
        schema = json.dumps(manifest.task["answer_schema"], ensure_ascii=True, indent=2)
        lines += ["Answers are JSON of this schema:", "```json", schema.replace("`", "\\u0060"), "```", ""]
    return lines


def _data(manifest: BundleManifest, report: Mapping[str, Any]) -> list[str]:
    lineage = manifest.lineage
    sizes = ", ".join(f"{size} {_inline(name)}" for name, size in (report.get("split_sizes") or {}).items())
    lines = [
        "## Data",
        f"Examples: {sizes or 'unknown'}. SHA-256 of the examples: `{_code(str(lineage.get('data_sha256')))}`.",
    ]
    counts = {name: count for name, count in (report.get("counts") or {}).items() if count}
    if counts:
        lines.append("Found in them: " + ", ".join(f"{_inline(name)} {count}" for name, count in counts.items()) + ".")
    if lineage.get("data_report"):
        lines.append(f"More in `{_code(str(lineage['data_report']))}`.")
    return [*lines, ""]


def _origin(manifest: BundleManifest) -> list[str]:
    origin = manifest.origin
    rows = [
        ("built", origin.built),
        ("seed", origin.seed),
        ("target", manifest.target.get("name")),
        ("processor", manifest.target.get("processor")),
        ("code", " ".join([origin.code.get("version", ""), origin.code.get("sha256", "")[:16]]).strip() or None),
        ("libraries", ", ".join(f"{name} {version}" for name, version in origin.versions.items()) or None),
        *(("made from", f"{parent.name} ({parent.kind} {parent.sha256[:16]})") for parent in origin.parents),
    ]
    lines = [f"| {name} | {_inline(str(value))} |" for name, value in rows if value is not None]
    return ["## Where it comes from", "| | |", "| --- | --- |", *lines, ""]


def _inline(text: str) -> str:
    """Text of any origin within a line or a cell: nothing in it is markup."""
    plain = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#!" else character for character in plain)


def _code(text: str) -> str:
    """Text of any origin within backticks."""
    plain = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return plain.replace("`", "'").replace("|", "\\|")
