# SPDX-License-Identifier: Apache-2.0
"""Step 5: the test split is scored, once, and the bundle written."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from open_autoglm.build_steps.workspace import Workspace, say, with_result
from open_autoglm.bundle import BundleManifest, QuantizationRecord, write_bundle
from open_autoglm.bundle.card import write_model_card
from open_autoglm.bundle.huggingface import write_tokenizer
from open_autoglm.evaluate import EVALUATION_FILE
from open_autoglm.models.checkpoint import INT8_FILE, load_config, load_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.size import int8_bytes
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.search.leaderboard import Entry, Leaderboard
from open_autoglm.storage import read_json, write_json
from open_autoglm.targets import resolve_target
from open_autoglm.version import __version__

_LIBRARIES: Final = ("torch", "optuna", "tokenizers", "llguidance", "numpy", "dbos")


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
        write_json(staging / EVALUATION_FILE, {"split": "test", **evaluation.to_dict()})
        metrics |= {f"test_{name}": value for name, value in evaluation.metrics.items()}
        say(f"bundle: {task.metric} {evaluation.value:.4f} on the {evaluation.n} examples of the test split")
    latency = None if task.metric == "perplexity" else work.latency(load_model(staging, weights=weights))
    manifest = BundleManifest(
        name=context.folder.name,
        task=task.to_dict(),
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
        lineage=_lineage(payload),
    )
    write_model_card(staging, manifest, work.prepared.report.to_dict())
    folder = context.folder / "bundle"
    write_bundle(folder, staging, manifest)
    _finish_leaderboard(context.folder, payload, metrics, config, task.metric, latency=latency)
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
) -> None:
    path = folder / "leaderboard.json"
    entry = Entry(
        name="final model",
        kind="final",
        score=metrics[f"valid_{metric}"],
        valid_loss=payload["train"]["curve"][-1]["valid_loss"],
        parameters=config.num_parameters(),
        seconds=payload["train"]["train_seconds"],
        interval=None if payload["train"].get("interval") is None else tuple(payload["train"]["interval"]),
        size_bytes=int8_bytes(config),
        latency_ms=latency,
        curve=tuple((row["seconds"], row["valid_loss"]) for row in payload["train"]["curve"]),
    )
    board = Leaderboard.load(path).with_entry(entry)
    board.save(path)
    if board.best_baseline() is not None:
        say(f"leaderboard: {board.verdict()}")
    limit = (payload["settings"].get("hardware_constraint") or {}).get("latency_ms")
    if limit is not None and latency is not None and latency > limit:
        say(f"note: one answer takes {latency:.2f} ms here, more than the {limit:g} ms that were asked for")


def _lineage(payload: dict[str, Any]) -> dict[str, Any]:
    versions = {"open_autoglm": __version__}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    settings = payload["settings"]
    return {
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "data_sha256": payload["data"]["digest"],
        "files_sha256": settings["digests"],
        "seed": settings["seed"],
        "budget_seconds": settings["budget"],
        "steps": settings["steps"],
        "versions": versions,
        "search": {"trial": payload["search"]["trial"], "training": payload["search"]["training"]},
        "seconds": {step: payload[step]["seconds"] for step in ("data", "search", "train", "compress")},
    }
