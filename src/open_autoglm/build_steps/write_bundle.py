# SPDX-License-Identifier: Apache-2.0
"""Step 5: the test split is scored, once, and the bundle written."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from open_autoglm.build_steps.target_device import describe_target, target_of
from open_autoglm.build_steps.workspace import Workspace, optional_path, say, with_result
from open_autoglm.bundle import BundleManifest, QuantizationRecord, write_bundle
from open_autoglm.bundle.card import write_data_report, write_model_card
from open_autoglm.bundle.huggingface import CHAT_TEMPLATE_FILE, write_tokenizer
from open_autoglm.bundle.lineage import describe_code, describe_parent, describe_time, describe_versions, plain_name
from open_autoglm.evaluate import EVALUATION_FILE
from open_autoglm.models.checkpoint import WEIGHTS_FILE, load_config, load_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.quantized_linear import unpack_in_place
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.search.leaderboard import Entry, Leaderboard
from open_autoglm.storage import read_json, write_json


def write_model_bundle(packet: Packet, context: StageContext) -> Packet:
    """Step 5: score the test split, once, and write the bundle in `bundle/`."""
    started = time.monotonic()
    work = Workspace(packet, context)
    task, payload = work.prepared.task, packet.payload
    compressed = payload["compress"]
    weights = compressed["weights"]
    staging = context.folder / ".bundle.staging"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(context.folder / "compress", staging)
    config = load_config(staging)
    write_tokenizer(work.tokenizer, staging, max_length=config.max_position_embeddings, reads_twice=task.reads_twice)
    generation = staging / "generation_config.json"
    write_json(generation, {**read_json(generation), "max_new_tokens": payload["data"]["answer_room"]})
    metrics = {f"valid_{task.metric}": compressed["metric_after"]}
    if work.prepared.test:
        model = load_model(staging, weights=weights)
        unpack_in_place(model)
        evaluation = work.score(model, work.prepared.test, title="test")
        write_json(staging / EVALUATION_FILE, {"split": "test", **evaluation.to_dict()})
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
            name: QuantizationRecord(
                bits=found["bits"],
                method=found["method"],
                group_size=found["group_size"],
                file=found["file"],
                size=found["size"],
                metric_before=compressed["metric_before"],
                metric_after=found["metric"],
            )
            for name, found in compressed["formats"].items()
        },
        target=describe_target(target_of(payload["settings"]), config, weights),
        metrics=metrics,
        lineage=lineage,
        license=payload["settings"].get("license") or next((p.get("license") for p in lineage["parents"]), None),
    )
    sizes = {"float32": (staging / WEIGHTS_FILE).stat().st_size}
    sizes |= {name: record.size for name, record in manifest.quantizations.items()}
    write_model_card(staging, manifest, report, sizes=sizes, curve=payload["train"]["curve"])
    folder = context.folder / "bundle"
    write_bundle(folder, staging, manifest)
    latency = None if task.metric == "perplexity" else work.latency_of_bundle(folder)
    _finish_leaderboard(context.folder, payload, metrics, config, task.metric, latency=latency, size=sizes.get(weights))
    context.emit({"event": "bundle_written", "metrics": metrics})
    result = {
        "folder": folder.name,
        "task": task.kind.value,
        "metrics": metrics,
        "seconds": round(time.monotonic() - started, 2),
    }
    return with_result(packet, "bundle", result)


def _finish_leaderboard(
    folder: Path,
    payload: dict[str, Any],
    metrics: dict[str, float],
    config: ModelConfig,
    metric: str,
    *,
    latency: float | None,
    size: int | None,
) -> None:
    """latency: milliseconds of one answer. size: bytes of the weights that are served."""
    path = folder / "leaderboard.json"
    entry = Entry(
        name="final model",
        kind="final",
        score=metrics[f"valid_{metric}"],
        valid_loss=payload["train"]["curve"][-1]["valid_loss"],
        parameters=config.num_parameters(),
        seconds=payload["train"]["train_seconds"],
        interval=None if payload["train"].get("interval") is None else tuple(payload["train"]["interval"]),
        size_bytes=size,
        latency_ms=latency,
        curve=tuple((row["seconds"], row["valid_loss"]) for row in payload["train"]["curve"]),
    )
    board = Leaderboard.load(path).with_entry(entry)
    board.save(path)
    if board.best_baseline() is not None:
        say(f"leaderboard: {board.verdict()}")
    limit = (payload["settings"].get("hardware_constraint") or {}).get("latency_ms")
    is_here = target_of(payload["settings"]).is_this_machine
    if limit is not None and latency is not None and latency > limit and is_here:
        say(f"note: one answer takes {latency:.2f} ms here, more than the {limit:g} ms that were asked for")


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
