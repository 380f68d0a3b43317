# SPDX-License-Identifier: Apache-2.0
"""A model that was made from others, put into its place: a bundle if the first of them is one, else a checkpoint.

Either says what it was made from. What a parent had measured of itself is left behind: it is not true of the child.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle import BundleManifest, QuantizationRecord, open_bundle, write_bundle
from open_autoglm.bundle.bundle import place_folder
from open_autoglm.bundle.card import CARD_FILE, DATA_REPORT_FILE, write_model_card
from open_autoglm.bundle.lineage import describe_code, describe_parent, describe_time, describe_versions, plain_name
from open_autoglm.bundle.manifest import MANIFEST
from open_autoglm.compress.checkpoint_files import copy_companions
from open_autoglm.models.model_folder import INDEX_FILE, WEIGHTS_FILE, load_config
from open_autoglm.storage import explained, read_json, write_json

_MEASURED: Final = ("evaluation.json", "quantization.json", "pruning.json", "distillation.json", CARD_FILE)
_INHERITED: Final = ("data_sha256", "files_sha256", "data_report")


@dataclass(frozen=True)
class Derivation:
    """How a model was made.

    report: the name of a JSON file, and its content. parents: folders, the one that gives task and tokenizer first.
    metrics: of the child. seconds: by step. quantizations, default_weights: of a bundle, as its manifest has them.
    lineage: fields that take the place of those inherited.
    """

    report: tuple[str, dict[str, Any]]
    parents: Sequence[Path]
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    quantizations: Mapping[str, QuantizationRecord] = field(default_factory=dict)
    default_weights: str = "float32"
    lineage: Mapping[str, Any] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()


def is_bundle(model: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (model / MANIFEST).is_file()


def copy_surroundings(parent: Path, staging: Path) -> None:
    """Copy what a model needs besides weights and `config.json`: tokenizer, template, settings, licence."""
    copy_companions(parent, staging, without=_MEASURED)


def clear_measured(staging: Path, *, without: Collection[str] = ()) -> None:
    """Take away what was copied of a parent's measurements and reports. without: names of files that stay."""
    for name in set(_MEASURED) - set(without):
        with explained(staging / name, "remove"):
            (staging / name).unlink(missing_ok=True)


def finish_model(staging: Path, out: Path, made: Derivation) -> None:
    """Write the report, and for a bundle the manifest and the model card, and rename the folder into its place.

    staging: weights, `config.json` and tokenizer; beside `out`, so that a rename is enough.
    Raises BundleError for a parent that is not what it was written as, StorageError when the disk refuses.
    """
    parents = [describe_parent(parent).model_dump(mode="json") for parent in made.parents]
    name, content = made.report
    write_json(staging / name, {**content, "parents": parents, "versions": describe_versions()})
    if not is_bundle(made.parents[0]):
        place_folder(staging, out)
        return
    parent = open_bundle(made.parents[0]).manifest
    config = load_config(staging)
    kept = {key: parent.lineage[key] for key in _INHERITED if key in parent.lineage}
    if "data_sha256" in made.lineage:  # it has learnt from data of its own
        (staging / str(kept.get("data_report", DATA_REPORT_FILE))).unlink(missing_ok=True)
        kept = {}
    if "data_report" in kept and not (staging / str(kept["data_report"])).is_file():
        del kept["data_report"]
    changes: dict[str, Any] = {
        "schema_version": 2,
        "name": plain_name(out.resolve().parent.name if out.name == "bundle" else out.resolve().name),
        "architecture": config.architecture,
        "parameters": config.num_parameters(),
        "default_weights": made.default_weights,
        "quantizations": dict(made.quantizations),
        "metrics": dict(made.metrics),
        "lineage": {
            **describe_time(made.seconds, os.environ),
            **kept,
            "code": describe_code(),
            "versions": describe_versions(),
            "parents": parents,
            **made.lineage,
        },
        "files": {},
    }
    values = {**parent.model_dump(mode="json"), **changes}
    values["quantizations"] = {key: record.model_dump(mode="json") for key, record in made.quantizations.items()}
    manifest = BundleManifest.model_validate(values)
    data_report = kept.get("data_report")
    report = read_json(staging / str(data_report)) if data_report is not None else {}
    is_float = not any(record.file in (WEIGHTS_FILE, INDEX_FILE) for record in made.quantizations.values())
    exact = staging / WEIGHTS_FILE
    sizes = {"float32": exact.stat().st_size} if is_float and exact.is_file() else {}
    sizes |= {key: record.size for key, record in made.quantizations.items()}
    write_model_card(staging, manifest, report, sizes=sizes, curve=made.curve)
    write_bundle(out, staging, manifest)
