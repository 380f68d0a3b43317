# SPDX-License-Identifier: Apache-2.0
"""The leaderboard: read back as it was, honest about baselines, and a page that runs nothing."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from open_autoglm.errors import StorageError
from open_autoglm.search.leaderboard import Entry, Leaderboard
from open_autoglm.search.leaderboard_page import render_leaderboard, write_leaderboard_page
from open_autoglm.search.svg_plot import Line, Point, draw
from tests.e2e.conftest import run_command

HOSTILE = "<script>alert(1)</script>"
FINAL = Entry(
    "final model", "final", 0.75, interval=(0.7, 0.8), latency_ms=4.0, parameters=1_400_000, size_bytes=1_500_000
)
TRIAL = Entry(
    "trial 0", "trial", 0.5, valid_loss=3.0, seconds=12.0, choices={"layers": 3, "note": HOSTILE},
    interval=(0.4, 0.6), latency_ms=3.0, curve=((1.0, 9.0), (2.0, 5.0), (4.0, 3.0)),
)  # fmt: skip
PRUNED = Entry("trial 1", "trial", None, state="pruned", valid_loss=5.0)
SVM = Entry("TF-IDF + linear SVM", "baseline", 0.78, interval=(0.74, 0.82), latency_ms=0.1)
BOARD = Leaderboard("accuracy", True, (SVM, TRIAL, PRUNED, FINAL), task="classification", validation=200)


def test_a_leaderboard_is_read_back_as_it_was(tmp_path: Path) -> None:
    BOARD.save(tmp_path / "board.json")
    assert Leaderboard.load(tmp_path / "board.json") == BOARD
    assert [row.name for row in BOARD.ranked()] == ["TF-IDF + linear SVM", "final model", "trial 0", "trial 1"]
    falling = Leaderboard(
        "perplexity", False, (Entry("a", "trial", 3.0), Entry("b", "trial", 2.0), Entry("c", "trial", None))
    )
    assert [row.name for row in falling.ranked()] == ["b", "a", "c"]
    (tmp_path / "other.json").write_text('{"entries": [{"nam": 1}]}')
    with pytest.raises(StorageError, match="not a leaderboard"):
        Leaderboard.load(tmp_path / "other.json")


def test_the_verdict_is_honest() -> None:
    assert BOARD.winning_baseline() == SVM
    words = BOARD.verdict()
    assert "the baseline is the better tool" in words
    assert "overlap" in words
    assert "--base" in words
    assert "rare" in words
    ahead = BOARD.with_entry(Entry("final model", "final", 0.9, interval=(0.88, 0.92)))
    assert ahead.winning_baseline() is None
    assert "overlap" not in ahead.verdict()
    level = BOARD.with_entry(Entry("final model", "final", 0.78))
    assert "as good" in level.verdict()
    assert "not finished" in Leaderboard("accuracy", True, (SVM,)).verdict()
    assert "no baseline" in Leaderboard("accuracy", True, (FINAL,)).verdict()


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_holds_everything_and_runs_nothing(tmp_path: Path) -> None:
    front = {
        "members": [
            {"layers": 3, "hidden_size": 96, "heads": 3, "intermediate_size": 256, "architecture": HOSTILE,
             "latency_ms": 2.0, "tokens_per_s": 900.0, "memory_mb": 3.0, "size_mb": 1.0, "decoder_parameters": 10**6,
             "loss": 4.0, "chosen": True},
        ],
        "seen": [[3.0, 4.5]],
    }  # fmt: skip
    board = Leaderboard("accuracy", True, BOARD.entries, "classification", 200, front)
    reader = Reader()
    page = render_leaderboard(board, name=HOSTILE)
    reader.feed(page)
    text = "".join(reader.texts)
    for expected in (
        "final model",
        "0.7000 – 0.8000",
        "4.00 ms",
        "1.50 MB",
        "the better tool",
        HOSTILE,
        "3 layers of 96",
    ):
        assert expected in text, expected
    assert not {"script", "img", "iframe", "link", "a"} & set(reader.tags)
    assert not {name for name in reader.attributes if name.startswith("on") or name in ("src", "href", "style")}
    assert reader.tags.count("svg") == 3
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "").replace('http-equiv="', "")
    write_leaderboard_page(BOARD, tmp_path / "board.html", name="run")
    assert (tmp_path / "board.html").read_text().startswith("<!DOCTYPE html>")


def test_plots_put_values_where_they_belong() -> None:
    svg = draw(
        [Point(1, 0.0, "low"), Point(100, 1.0, "high & <sure>", low=0.9, high=1.0)],
        title="t",
        x_label="x",
        y_label="y",
        is_log=True,
    )
    assert "high &amp; &lt;sure&gt;" in svg
    circles = [part.split('"') for part in svg.split("<circle")[1:]]
    (x1, y1), (x2, y2) = ((float(part[3]), float(part[5])) for part in circles)
    assert x1 < x2
    assert y1 > y2
    assert draw(title="t", x_label="x", y_label="y") == ""
    assert draw([Point(-1, 1, "left out")], title="t", x_label="x", y_label="y", is_log=True) == ""
    assert draw(lines=[Line([(1, 2), (2, 1)], "curve")], title="t", x_label="x", y_label="y").count("<polyline") == 1


def test_the_command_prints_the_board_as_a_table_and_as_json(tmp_path: Path) -> None:
    BOARD.save(tmp_path / "leaderboard.json")
    done = run_command("leaderboard", tmp_path, "--json", "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout.splitlines()[-1])
    assert [row["name"] for row in values["entries"]] == [row.name for row in BOARD.ranked()]
    assert values["verdict"] == BOARD.verdict()
    assert (tmp_path / "page.html").exists()
    missing = run_command("leaderboard", tmp_path / "nowhere")
    assert missing.returncode == 2
    assert "leaderboard.json" in missing.stderr
