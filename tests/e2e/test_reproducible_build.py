# SPDX-License-Identifier: Apache-2.0
"""The same inputs and seed give the same bytes, dates aside; what is built says where it comes from."""

from pathlib import Path

import pytest

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.comparison import compare_manifests
from tests.e2e.conftest import SNIPS, environment, last_json, run_command

EPOCH = "1767225600"


@pytest.fixture(scope="module")
def built_twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bundles of one build each, from the same few rows."""
    folder = tmp_path_factory.mktemp("twice")
    data = folder / "snips"
    data.mkdir()
    for split, rows in (("train", 120), ("valid", 8), ("test", 8)):
        lines = (SNIPS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (data / f"{split}.jsonl").write_text("".join(lines[:rows]), encoding="utf-8")
    bundles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        assert environment()["SOURCE_DATE_EPOCH"] == EPOCH
        for name in ("one", "two"):
            out = folder / name / "tickets"  # the run's name is the bundle's
            done = run_command("build", data, "--out", out, "--steps", "27", "--trials", "1", "--json")
            assert done.returncode == 0, done.stderr
            bundles.append(Path(last_json(done.stdout)["bundle"]))
    return bundles[0], bundles[1]


def test_two_builds_give_the_same_bytes(built_twice: tuple[Path, Path]) -> None:
    first, second = built_twice
    assert compare_manifests(open_bundle(first).manifest, open_bundle(second).manifest) == []
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    done = run_command("diff", first, second)
    assert done.returncode == 0, done.stdout


def test_a_build_says_where_it_comes_from(built_twice: tuple[Path, Path]) -> None:
    opened = open_bundle(built_twice[0])
    origin = opened.manifest.origin
    assert opened.manifest.schema_version == 2
    assert origin.built == "2026-01-01T00:00:00+00:00"
    assert origin.seconds == {}
    assert origin.data_report == "data_report.json"
    assert set(origin.files_sha256) == {"train", "valid", "test"}
    assert origin.code["version"]
    assert {"plots/metrics.svg", "plots/sizes.svg", "README.md", "chat_template.jinja"} <= set(opened.manifest.files)
    card = (opened.path / "README.md").read_text(encoding="utf-8")
    assert f"{opened.manifest.metrics['test_exact_match']:.4f}" in card
