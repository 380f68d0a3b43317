# SPDX-License-Identifier: Apache-2.0
"""What a distillation leaves: the student as a bundle or checkpoint, exact and in 4 bits if it learnt so."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.bundle import QuantizationRecord
from open_autoglm.compress.derived_model import Derivation, copy_surroundings, finish_model
from open_autoglm.compress.distil_settings import DistilSettings
from open_autoglm.compress.fake_quantization import settle
from open_autoglm.compress.int4_file import write_trained_int4
from open_autoglm.compress.layer_packing import PackingPlan
from open_autoglm.compress.trained_checkpoint import write_trained_checkpoint
from open_autoglm.models.checkpoint import save_model
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.model_folder import GENERATION_CONFIG_FILE
from open_autoglm.storage import explained, read_json, write_json
from open_autoglm.train.checkpoint import Progress

DISTILLATION_FILE: Final = "distillation.json"
MODEL_FOLDERS: Final = {True: "bundle", False: "model"}
"""Where in a run's folder the student lies, by whether it is a bundle."""


@dataclass(frozen=True)
class Learnt:
    """A student after its training.

    plan: how it is packed, if it was trained with rounded weights. losses: nats per example, by split, its own and the
    first teacher's. data_sha256: of the examples.
    """

    student: GlmForCausalLM
    plan: PackingPlan | None
    progress: Progress
    losses: Mapping[str, float]
    data_sha256: str


def write_student(
    learnt: Learnt, folder: Path, parents: Sequence[Path], settings: DistilSettings, seconds: float, *, is_bundle: bool
) -> dict[str, Any]:
    """Write the student into `folder`. Returns the content of its `distillation.json`.

    parents: the first one gives task and tokenizer. Raises StorageError when the disk refuses.
    """
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    with explained(staging, "write"):
        staging.mkdir(parents=True)
    copy_surroundings(parents[0], staging)
    student, plan = learnt.student, learnt.plan
    config = student.config
    progress = learnt.progress
    quantizations: dict[str, QuantizationRecord] = {}
    if plan is not None and settings.layout is None and is_bundle:
        path = write_trained_int4(student, plan, staging)
        quantizations["int4"] = QuantizationRecord(
            bits=4,
            method="qat",
            group_size=plan.layout.group_size,
            file=path.name,
            size=path.stat().st_size,
            metric_before=None,
            metric_after=learnt.losses["valid"],
        )
    generation = staging / GENERATION_CONFIG_FILE
    kept = read_json(generation) if generation.is_file() else {}
    if plan is None or quantizations:
        save_model(settle(student), staging)
        written = read_json(generation)
        if "max_new_tokens" in kept:
            write_json(generation, {**written, "max_new_tokens": kept["max_new_tokens"]})
    else:
        write_trained_checkpoint(student, plan, staging)
    report = {
        "settings": settings.to_dict(),
        "parameters": config.num_parameters(),
        "steps": progress.step,
        "tokens": progress.tokens,
        "losses": dict(learnt.losses),
        "curve": progress.curve,
        "restarts": progress.restarts,
        "group_size": None if plan is None else plan.layout.group_size,
        "kept": [] if plan is None else list(plan.kept),
        "seconds": seconds,
    }
    made = Derivation(
        (DISTILLATION_FILE, report),
        parents,
        metrics={f"{split}_loss": value for split, value in learnt.losses.items() if "teacher" not in split},
        seconds={"distil": seconds},
        quantizations=quantizations,
        default_weights="int4" if quantizations else "float32",
        lineage={
            "data_sha256": learnt.data_sha256,
            "seed": settings.seed,
            "distillation": {**settings.to_dict(), "trained_steps": progress.step},
        },
        curve=progress.curve,
    )
    finish_model(staging, folder, made)
    return read_json(folder / DISTILLATION_FILE)
