# SPDX-License-Identifier: Apache-2.0
"""Where a bundle comes from: dates that can be fixed, parents that are known by their bytes."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from open_autoglm.bundle.lineage import (
    build_date,
    describe_code,
    describe_parent,
    describe_time,
    describe_versions,
    plain_name,
)
from open_autoglm.errors import BundleError, ConfigurationError
from open_autoglm.version import __version__
from tests.bundle.small_bundle import make_bundle


def test_source_date_epoch_fixes_the_date_and_leaves_durations_out() -> None:
    fixed = {"SOURCE_DATE_EPOCH": "1767225600"}
    assert build_date(fixed) == datetime(2026, 1, 1, tzinfo=UTC)
    assert describe_time({"train": 3.0}, fixed) == {"built": "2026-01-01T00:00:00+00:00"}
    now = describe_time({"train": 3.0}, {})
    assert now["seconds"] == {"train": 3.0}
    assert abs((datetime.fromisoformat(now["built"]) - datetime.now(UTC)).total_seconds()) < 60


@pytest.mark.parametrize("text", ["yesterday", "-5", "1e9", "99999999999999999999", "١٢"])
def test_a_date_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="SOURCE_DATE_EPOCH"):
        build_date({"SOURCE_DATE_EPOCH": text})


def test_a_parent_bundle_is_known_by_its_manifest(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    parent = describe_parent(folder)
    assert (parent.name, parent.kind, parent.license) == ("tickets", "bundle", "Apache-2.0")
    assert parent.sha256 == hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()


def test_a_parent_checkpoint_is_known_by_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "glm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345678")
    first = describe_parent(folder)
    assert (first.name, first.kind) == ("glm", "checkpoint")
    assert describe_parent(folder) == first
    (folder / "model.safetensors").write_bytes(b"12345679")
    second = describe_parent(folder)
    assert second.sha256 != first.sha256
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert describe_parent(folder).sha256 != second.sha256
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="no weights"):
        describe_parent(tmp_path / "empty")


def test_code_and_versions_say_what_runs() -> None:
    code = describe_code()
    assert code["version"] == __version__
    assert code == describe_code()
    assert len(code["sha256"]) == 64
    assert describe_versions(["numpy", "no-such-library"]).keys() == {"open_autoglm", "numpy"}


def test_a_name_is_printable() -> None:
    assert plain_name("工单-1") == "工单-1"
    assert plain_name("a\nb\x1bc") == "a-b-c"
    assert plain_name("") == "model"
