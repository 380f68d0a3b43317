# SPDX-License-Identifier: Apache-2.0
"""In what two bundles differ, and that equal inputs give equal bundles."""

from pathlib import Path

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.comparison import compare_manifests, differ_in_time_only
from open_autoglm.task import Task, TaskKind
from tests.bundle.small_bundle import make_bundle, make_manifest


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path, "a"), make_bundle(tmp_path, "b")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert compare_manifests(open_bundle(first).manifest, open_bundle(second).manifest) == []


def test_each_section_tells_its_differences(tmp_path: Path) -> None:
    first = open_bundle(make_bundle(tmp_path, "a")).manifest
    other = make_manifest(
        name="other",
        task=Task(TaskKind.CLASSIFICATION, labels=("a", "c")).to_dict(),
        metrics={"test_accuracy": 0.5, "test_f1": 0.25},
        license="MIT",
        lineage={"seed": 8, "built": "2026-01-01T00:00:00+00:00"},
    )
    files = {**first.files, "new.txt": next(iter(first.files.values()))}
    del files["inner/note.txt"]
    found = {item.place: item for item in compare_manifests(first, other.model_copy(update={"files": files}))}
    assert found["model.name"].after == "other"
    assert found["task.labels"].before == ["a", "b"]
    assert found["metrics.test_accuracy"].delta == -0.25
    assert found["metrics.test_f1"].change == "added"
    assert found["metrics.valid_accuracy"].change == "removed"
    assert found["license"].before == "Apache-2.0"
    assert (found["lineage.seed"].before, found["lineage.seed"].after) == (7, 8)
    assert found["lineage.versions"].change == "removed"
    assert found["files/new.txt"].change == "added"
    assert found["files/inner/note.txt"].change == "removed"
    assert not differ_in_time_only(list(found.values()))


def test_a_build_of_another_day_differs_in_time_only() -> None:
    first = make_manifest()
    lineage = {**first.lineage, "built": "2027-02-02T00:00:00+00:00", "seconds": {"train": 9.0}}
    differences = compare_manifests(first, make_manifest(lineage=lineage))
    assert {item.place for item in differences} == {"lineage.built", "lineage.seconds.train"}
    assert differ_in_time_only(differences)
    assert differ_in_time_only(compare_manifests(first, first))
