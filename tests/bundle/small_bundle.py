# SPDX-License-Identifier: Apache-2.0
"""Small bundles for tests: real files of a few bytes, a full manifest."""

from pathlib import Path
from typing import Any

from open_autoglm.bundle import BundleManifest, QuantizationRecord, write_bundle
from open_autoglm.task import Task, TaskKind

TASK = Task(TaskKind.CLASSIFICATION, labels=("a", "b"))


def make_manifest(**changes: Any) -> BundleManifest:
    """Every part filled in."""
    values: dict[str, Any] = {
        "name": "tickets",
        "task": TASK.to_dict(),
        "chat_template": "chat_template.jinja",
        "architecture": "GlmForCausalLM",
        "parameters": 1234,
        "default_weights": "int8",
        "quantizations": {
            "int8": QuantizationRecord(
                bits=8,
                method="round-to-nearest",
                group_size=None,
                file="int8.safetensors",
                size=64,
                metric_before=0.75,
                metric_after=0.74,
            )
        },
        "target": {"name": "cpu", "cores": 2, "memory": 8 * 1024**3},
        "metrics": {"test_accuracy": 0.75, "valid_accuracy": 0.8},
        "lineage": {
            "built": "2026-01-01T00:00:00+00:00",
            "data_sha256": "0" * 64,
            "seed": 7,
            "versions": {"numpy": "2.0"},
            "seconds": {"train": 3.5},
        },
        "license": "Apache-2.0",
    }
    return BundleManifest(**{**values, **changes})


def fill(staging: Path) -> None:
    """The files of a bundle before it is one."""
    (staging / "inner").mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(bytes(range(256)))
    (staging / "int8.safetensors").write_bytes(bytes(range(64)))
    (staging / "chat_template.jinja").write_text("{{ messages }}")
    (staging / "inner" / "note.txt").write_text("你好")


def make_bundle(folder: Path, place: str = "bundle", **changes: Any) -> Path:
    """A bundle at `folder / place`."""
    staging = folder / f"{place}.staging"
    fill(staging)
    write_bundle(folder / place, staging, make_manifest(**changes))
    return folder / place
