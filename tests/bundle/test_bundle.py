# SPDX-License-Identifier: Apache-2.0
"""A bundle opens only if it is exactly what was written."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from open_autoglm.bundle import BundleManifest, open_bundle, write_bundle
from open_autoglm.errors import BundleError
from open_autoglm.task import Task, TaskKind


def make_bundle(folder: Path) -> Path:
    staging = folder / "staging"
    (staging / "inner").mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(bytes(range(256)))
    (staging / "inner" / "note.txt").write_text("你好")
    task = Task(TaskKind.CLASSIFICATION, labels=("a", "b"))
    manifest = BundleManifest(name="test", task=task.to_dict(), architecture="GlmForCausalLM", parameters=1)
    write_bundle(folder / "bundle", staging, manifest)
    return folder / "bundle"


def test_what_is_written_opens_and_says_what_it_is(tmp_path: Path) -> None:
    opened = open_bundle(make_bundle(tmp_path))
    assert set(opened.manifest.files) == {"model.safetensors", "inner/note.txt"}
    assert opened.task == Task(TaskKind.CLASSIFICATION, labels=("a", "b"))
    assert opened.size == 256 + len("你好".encode())
    assert not (tmp_path / "staging").exists()


def test_writing_again_replaces_the_bundle(tmp_path: Path) -> None:
    make_bundle(tmp_path)
    make_bundle(tmp_path)
    assert open_bundle(tmp_path / "bundle").manifest.name == "test"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["model.safetensors", "inner/note.txt"]), st.integers(0, 10_000), st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused_with_the_files_name(
    tmp_path: Path, name: str, place: int, bit: int
) -> None:
    folder = tmp_path / "bundle"
    if not folder.exists():
        make_bundle(tmp_path)
    file = folder / name
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[place % len(changed)] ^= 1 << bit
    file.write_bytes(changed)
    try:
        with pytest.raises(BundleError, match=name):
            open_bundle(folder)
    finally:
        file.write_bytes(whole)
    open_bundle(folder)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 100_000), st.binary(min_size=1, max_size=4))
def test_a_mangled_manifest_is_a_bundle_error_or_means_the_same(tmp_path: Path, place: int, junk: bytes) -> None:
    folder = tmp_path / "bundle"
    if not folder.exists():
        make_bundle(tmp_path)
    file = folder / "bundle.json"
    whole = file.read_bytes()
    start = place % len(whole)
    file.write_bytes(whole[:start] + junk + whole[start + len(junk) :])
    try:
        assert set(open_bundle(folder).manifest.files) == {"model.safetensors", "inner/note.txt"}
    except BundleError:
        pass
    finally:
        file.write_bytes(whole)


def rewrite(folder: Path, **changes: object) -> None:
    file = folder / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_names_that_lead_outside_are_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (tmp_path / "secret").write_text("x")
    record = {"size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    files = json.loads((folder / "bundle.json").read_text())["files"]
    for name in ("../secret", str(tmp_path / "secret"), "inner/../../secret", "inner\\..\\secret"):
        rewrite(folder, files={**files, name: record})
        with pytest.raises(BundleError, match="outside"):
            open_bundle(folder)


def test_links_strangers_and_gaps_are_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "extra.py").write_text("print()")
    with pytest.raises(BundleError, match=r"extra\.py is not listed"):
        open_bundle(folder)
    (folder / "extra.py").unlink()
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="link"):
        open_bundle(folder)
    (folder / "link").unlink()
    (folder / "inner" / "note.txt").unlink()
    with pytest.raises(BundleError, match=r"inner/note\.txt is missing"):
        open_bundle(folder)


def test_what_is_not_a_bundle_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a folder"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match="not a bundle"):
        open_bundle(tmp_path)
    make_bundle(tmp_path)
    with pytest.raises(BundleError, match="did you mean"):
        open_bundle(tmp_path)
    rewrite(tmp_path / "bundle", schema_version=3)
    with pytest.raises(BundleError, match="schema_version"):
        open_bundle(tmp_path / "bundle")


def test_empty_folders_and_folders_without_leave_are_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "more").mkdir()
    with pytest.raises(BundleError, match="more is not listed"):
        open_bundle(folder)
    (folder / "more").rmdir()
    deep = folder / "inner"
    for _ in range(50):
        deep = deep / "in"
        deep.mkdir()
    with pytest.raises(BundleError, match="inner/in is not listed"):
        open_bundle(folder)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(BundleError, match=r"model\.safetensors is not listed"):
        open_bundle(folder)
    record = {"size": 0, "sha256": "0" * 64}
    files = json.loads((folder / "bundle.json").read_text())["files"]
    rewrite(folder, files={**files, "model.safetensors/x": record})
    with pytest.raises(BundleError, match="missing"):
        open_bundle(folder)


def test_bundle_json_does_not_list_itself_or_its_signature(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    files = json.loads((folder / "bundle.json").read_text())["files"]
    for name in ("bundle.json", "bundle.sig", "model.sig"):
        rewrite(folder, files={**files, name: {"size": 0, "sha256": "0" * 64}})
        with pytest.raises(BundleError, match="cannot be listed"):
            open_bundle(folder)
