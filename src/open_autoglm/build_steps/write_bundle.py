# SPDX-License-Identifier: Apache-2.0
"""Step 5: the test split is scored, once, and the bundle written."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from open_autoglm.build_steps.workspace import Workspace, optional_path, say, with_result
from open_autoglm.bundle import BundleManifest, QuantizationRecord, write_bundle
from open_autoglm.bundle.card import write_data_report, write_model_card
from open_autoglm.bundle.huggingface import CHAT_TEMPLATE_FILE, write_tokenizer
from open_autoglm.bundle.lineage import describe_code, describe_parent, describe_time, describe_versions, plain_name
from open_autoglm.models.checkpoint import INT8_FILE, WEIGHTS_FILE, load_config, load_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.search.leaderboard import Entry, Leaderboard
from open_autoglm.storage import read_json, write_json
from open_autoglm.targets import resolve_target


def write_model_bundle(packet: Packet, context: StageContext) -> Packet:
    """Step 5: score the test split, once, and write the bundle in `bundle/`."""
    started = time.monotonic()
    work = Workspace(packet, context)
    task, payload = work.prepared.task, packet.payload
    compressed = payload["compress"]
    weights = "int8" if compressed["accepted"] else "float32"
    staging = context.folder / ".bundle.staging"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(context.folder / "compress", staging)
    config = load_config(staging)
    write_tokenizer(work.tokenizer, staging, max_length=config.max_position_embeddings)
    generation = staging / "generation_config.json"
    write_json(generation, {**read_json(generation), "max_new_tokens": payload["data"]["answer_room"]})
    valid_value = compressed["metric_after"] if weights == "int8" else compressed["metric_before"]
    metrics = {f"valid_{task.metric}": valid_value}
    if work.prepared.test:
        evaluation = work.score(load_model(staging, weights=weights), work.prepared.test, title="test")
        metrics |= {f"test_{name}": value for name, value in evaluation.metrics.items()}
        say(f"bundle: {task.metric} {evaluation.value:.4f} on the {evaluation.n} examples of the test split")
    report = work.prepared.report.to_dict()
    data_report = write_data_report(staging, report)
    lineage = _lineage(payload, data_report)
    manifest = BundleManifest(
        name=plain_name(context.folder.name),
        task=task.to_dict(),
        chat_template=CHAT_TEMPLATE_FILE,
        architecture=config.architecture,
        parameters=config.num_parameters(),
        default_weights=weights,
        quantizations={
            "int8": QuantizationRecord(
                bits=8,
                method="round-to-nearest",
                group_size=None,
                file=INT8_FILE,
                size=compressed["size_after"],
                metric_before=compressed["metric_before"],
                metric_after=compressed["metric_after"],
            )
        },
        target=resolve_target(payload["settings"]["target"]).to_dict(),
        metrics=metrics,
        lineage=lineage,
        license=payload["settings"].get("license") or next((p.get("license") for p in lineage["parents"]), None),
    )
    sizes = {"float32": (staging / WEIGHTS_FILE).stat().st_size}
    sizes |= {name: record.size for name, record in manifest.quantizations.items()}
    write_model_card(staging, manifest, report, sizes=sizes, curve=payload["train"]["curve"])
    folder = context.folder / "bundle"
    write_bundle(folder, staging, manifest)
    _finish_leaderboard(context.folder, payload, metrics, config, task.metric)
    context.emit({"event": "bundle_written", "metrics": metrics})
    result = {
        "folder": folder.name,
        "task": task.kind.value,
        "metrics": metrics,
        "seconds": round(time.monotonic() - started, 2),
    }
    return with_result(packet, "bundle", result)


def _finish_leaderboard(
    folder: Path, payload: dict[str, Any], metrics: dict[str, float], config: ModelConfig, metric: str
) -> None:
    path = folder / "leaderboard.json"
    entry = Entry(
        name="final model",
        kind="final",
        score=metrics[f"valid_{metric}"],
        valid_loss=payload["train"]["curve"][-1]["valid_loss"],
        parameters=config.num_parameters(),
        seconds=payload["train"]["train_seconds"],
    )
    board = Leaderboard.load(path).with_entry(entry)
    board.save(path)
    if winner := board.winning_baseline():
        say(
            f"note: the baseline '{winner.name}' scores {winner.score:.4f}, more than this model; a longer --budget "
            "or more data may change that, and until then the baseline is the better tool for this task"
        )


def _lineage(payload: dict[str, Any], data_report: str) -> dict[str, Any]:
    settings = payload["settings"]
    base = optional_path(settings["base"])
    parents = [] if base is None else [describe_parent(base).model_dump(mode="json")]
    seconds = {step: payload[step]["seconds"] for step in ("data", "search", "train", "compress")}
    return {
        **describe_time(seconds, os.environ),
        "data_sha256": payload["data"]["digest"],
        "files_sha256": settings["digests"],
        "data_report": data_report,
        "seed": settings["seed"],
        "budget_seconds": settings["budget"],
        "steps": settings["steps"],
        "code": describe_code(),
        "versions": describe_versions(),
        "search": {
            "trial": payload["search"]["trial"],
            "config": payload["search"]["config"],
            "training": payload["search"]["training"],
            "trained_steps": payload["train"]["steps"],
        },
        "parents": parents,
    }
