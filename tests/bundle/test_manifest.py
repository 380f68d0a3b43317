# SPDX-License-Identifier: Apache-2.0
"""`bundle.json` is read strictly, in version 1 and 2."""

import json
from pathlib import Path

import pytest

from open_autoglm.bundle import open_bundle
from open_autoglm.bundle.manifest import BundleManifest, parse_manifest
from open_autoglm.errors import BundleError
from open_autoglm.task import Task, TaskKind
from tests.bundle.small_bundle import TASK, make_bundle, make_manifest

# As a build of 0.1.0 wrote it, before there was a version 2.
VERSION_1 = {
    "schema_version": 1,
    "name": "snips",
    "task": {
        "kind": "classification", "metric": "accuracy", "labels": ["a", "b"], "answer_schema": None,
        "input_column": "text", "output_column": "label",
    },
    "chat_format": "glm-4-9b-chat",
    "architecture": "GlmForCausalLM",
    "parameters": 10,
    "default_weights": "int8",
    "quantizations": {
        "int8": {
            "bits": 8, "method": "round-to-nearest", "group_size": None, "file": "int8.safetensors", "size": 1,
            "metric_before": 0.5, "metric_after": 0.5,
        }
    },
    "target": {"name": "cpu"},
    "metrics": {"test_accuracy": 0.5},
    "lineage": {"built": "2026-11-20T10:00:00+00:00", "seed": 0, "budget_seconds": 900.0, "steps": None},
    "license": None,
    "files": {},
}  # fmt: skip


def parsed(**changes: object) -> BundleManifest:
    return parse_manifest(json.dumps({**VERSION_1, **changes}).encode(), "bundle.json")


def test_version_1_still_opens(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    files = json.loads((folder / "bundle.json").read_text())["files"]
    (folder / "bundle.json").write_text(json.dumps({**VERSION_1, "files": files}))
    opened = open_bundle(folder)
    assert opened.manifest.schema_version == 1
    assert opened.task == Task(TaskKind.CLASSIFICATION, ("a", "b"), input_column="text", output_column="label")
    assert opened.manifest.origin.seed == 0
    assert opened.manifest.chat_template is None


def test_what_is_written_is_version_2_and_reads_back(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path)
    content = json.loads((folder / "bundle.json").read_text())
    assert content["schema_version"] == 2
    opened = open_bundle(folder).manifest
    assert opened.built_for == TASK
    assert opened.origin.versions == {"numpy": "2.0"}
    assert opened.model_copy(update={"files": {}}) == make_manifest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 3}, "schema_version"),
        ({"surprise": 1}, "surprise"),
        ({"name": "a\x1b[2Jb"}, "name: must be printable"),
        ({"name": ""}, "name"),
        ({"task": {"kind": "cooking"}}, "task.kind"),
        ({"task": {}}, "task.kind"),
        ({"task": {"kind": "classification", "labels": [1]}}, "task.labels.0"),
        ({"task": {"kind": "extraction", "answer_schema": "x"}}, "task.answer_schema"),
        ({"parameters": -1}, "parameters"),
        ({"default_weights": "int2"}, "default_weights"),
        ({"files": {"a": {"size": -1, "sha256": "0" * 64}}}, "files.a.size"),
        ({"files": {"a": {"size": True, "sha256": "0" * 64}}}, "files.a.size"),
        ({"files": {"a": {"size": 1, "sha256": "0" * 63}}}, "files.a.sha256"),
        ({"schema_version": 2, "lineage": {"seed": "x"}}, "lineage.seed"),
        ({"schema_version": 2, "lineage": {"parents": [{"name": "p", "kind": "z"}]}}, "lineage.parents.0"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(changes: dict, message: str) -> None:
    with pytest.raises(BundleError, match=r"^bundle\.json: ") as caught:
        parsed(**changes)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"name": 1, "name": 2}', "twice"),
        (b'{"parameters": NaN}', "NaN"),
        (b'{"parameters": 1e999}', "too large"),
        (b'{"parameters": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"name": "\xed\xa0\x80"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"target": ' + b"[" * 300 + b"]" * 300 + b"}", "nested"),
        (b"", "not valid JSON"),
        (b"[]", "bundle.json"),
        (b" " * (5 * 1024 * 1024), "MiB"),
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(BundleError, match=reason):
        parse_manifest(text, "bundle.json")


def test_a_part_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    for field, values in (
        ("chat_template", "other.jinja"),
        ("lineage", {"data_report": "other.json"}),
    ):
        with pytest.raises(BundleError, match=r"other\.\w+', which is not listed"):
            make_bundle(tmp_path, f"for-{field}", **{field: values})


def test_a_lone_surrogate_is_told_in_plain_characters() -> None:
    content = json.dumps({**VERSION_1, "\ud800key": 1}).encode()
    with pytest.raises(BundleError) as caught:
        parse_manifest(content, "bundle.json")
    assert str(caught.value).encode()
    assert str(caught.value).isprintable()
