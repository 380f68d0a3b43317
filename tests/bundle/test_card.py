# SPDX-License-Identifier: Apache-2.0
"""The model card and its plots: right figures, valid files, and no markup from outside."""

import json
from pathlib import Path
from xml.etree import ElementTree

import yaml

from open_autoglm.bundle.card import summarise_report, write_data_report, write_model_card
from open_autoglm.bundle.plots import draw_bars, draw_curve
from open_autoglm.task import Task, TaskKind
from tests.bundle.small_bundle import make_manifest

SVG = "{http://www.w3.org/2000/svg}"
REPORT = {
    "version": 1,
    "task": "classification",
    "confidence": 0.9,
    "reason": "two labels",
    "language": "en",
    "split_sizes": {"train": 10, "valid": 2, "test": 3},
    "counts": {"duplicate": 2, "leak": 0},
    "files": [{"path": "/home/someone/secret/train.csv", "rows": 15, "columns": ["a"], "ignored": []}],
    "findings": [{"kind": "duplicate", "what": "same rows", "count": 2, "rows": {"/home/someone/train.csv": "3, 4"}}],
}
CURVE = [{"step": 10, "valid_loss": 2.0}, {"step": 20, "valid_loss": 1.0}, {"step": 30, "valid_loss": float("inf")}]


def write_card(folder: Path, **changes: object) -> str:
    write_model_card(folder, make_manifest(**changes), REPORT, sizes={"float32": 256_000, "int8": 64_000}, curve=CURVE)
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_has_what_the_manifest_says_and_shows_its_plots(tmp_path: Path) -> None:
    card = write_card(tmp_path)
    assert "| test\\_accuracy | 0.7500 |" in card
    assert "| int8 (served by default) | 0.06 MB | 0.7500 | 0.7400 |" in card
    assert "0" * 64 in card
    assert front_matter(card)["license"] == "apache-2.0"
    assert front_matter(card)["language"] == "en"
    shown = [line.partition("](")[2].rstrip(")") for line in card.splitlines() if line.startswith("![")]
    assert shown == ["plots/metrics.svg", "plots/sizes.svg", "plots/learning.svg"]
    for name in shown:
        root = ElementTree.fromstring((tmp_path / name).read_text(encoding="utf-8"))
        assert root.tag == f"{SVG}svg"


def test_a_licence_of_the_owners_own_is_other(tmp_path: Path) -> None:
    assert front_matter(write_card(tmp_path, license="LicenseRef-House"))["license"] == "other"
    assert "license" not in front_matter(write_card(tmp_path, license=None))


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_card(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 4
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_bars_are_as_long_as_their_values() -> None:
    root = ElementTree.fromstring(draw_bars("Size", [("a", 4.0), ("b", 1.0), ("c", 0.0)], unit="MB"))
    widths = [float(bar.get("width", "")) for bar in root.iter(f"{SVG}rect") if bar.get("rx")]
    assert abs(widths[0] / widths[1] - 4) < 0.05
    assert widths[2] <= 1
    assert "4.000 MB" in [text.text for text in root.iter(f"{SVG}text")]


def test_a_curve_goes_through_its_points_in_their_order() -> None:
    root = ElementTree.fromstring(draw_curve("Loss", [(0, 4.0), (1, 2.0), (2, 3.0)], x_name="x", y_name="y"))
    line = next(root.iter(f"{SVG}polyline")).get("points", "")
    places = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    heights = [-y for _, y in places]
    assert heights[1] < heights[2] < heights[0]
    assert abs((heights[2] - heights[1]) / (heights[0] - heights[1]) - 0.5) < 0.01


def test_text_from_the_data_is_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>`|\n# heading ![x](http://x)"
    task = Task(TaskKind.CLASSIFICATION, labels=(evil, "b"))
    card = write_card(tmp_path, task=task.to_dict(), metrics={evil: 0.5}, name="a<b>|c", license="x: [y\\z]")
    assert "<script>" not in card.replace("`<script>", "")
    assert "\n# heading" not in card
    assert isinstance(front_matter(card), dict)
    plot = (tmp_path / "plots" / "metrics.svg").read_text(encoding="utf-8")
    assert "<script" not in plot
    ElementTree.fromstring(plot)


def test_the_data_report_of_a_bundle_tells_no_folders_and_no_rows(tmp_path: Path) -> None:
    name = write_data_report(tmp_path, REPORT)
    text = (tmp_path / name).read_text(encoding="utf-8")
    assert "someone" not in text
    assert "3, 4" not in text
    values = json.loads(text)
    assert values == summarise_report(REPORT)
    assert values["files"][0]["name"] == "train.csv"
    assert values["findings"] == [{"kind": "duplicate", "what": "same rows", "count": 2}]
    assert values["split_sizes"] == REPORT["split_sizes"]
