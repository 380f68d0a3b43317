# SPDX-License-Identifier: Apache-2.0
"""Step 4: the weights in smaller formats, each scored, and the smallest that loses little becomes the default."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final

from open_autoglm.build_steps.format_scores import score_format
from open_autoglm.build_steps.target_device import target_of, tried_formats
from open_autoglm.build_steps.workspace import SCORE_EXAMPLES, Workspace, say, since_process_start, with_result
from open_autoglm.compress.calibration import calibration_of
from open_autoglm.compress.engine_latency import measure_latency
from open_autoglm.compress.gate import DEFAULT_TOLERANCE, Decision, Format, Latency, Trial, decide
from open_autoglm.compress.gate_plot import draw
from open_autoglm.compress.int4_file import write_int4
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.engine.backends import load_backend
from open_autoglm.models.checkpoint import load_model, quantize_in_place, save_int8, save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.model_folder import INT4_FILE, WEIGHTS_FILE
from open_autoglm.pipeline import Packet, StageContext
from open_autoglm.search.plan import Plan
from open_autoglm.storage import write_atomic, write_json

GROUP_SIZE: Final = 64
"""Inputs that share a scale at 4 bits: small models have short rows, and feel each rounding more."""

_CALIBRATION_TOKENS: Final = 32_768
_CALIBRATION_PASSES: Final = 6
"""What GPTQ takes for each of these tokens, in forward passes."""

_LAST_STEP_SHARE: Final = 0.4
"""Of the time that a build keeps back for the steps after training: at least so much is for scoring the test split."""


def compress_model(packet: Packet, context: StageContext) -> Packet:
    """Step 4: smaller formats in `compress/`; what was tried is in `compression.json` and `compression.svg`."""
    started = time.monotonic()
    work = Workspace(packet, context)
    folder, candidates = context.folder / "compress", context.folder / ".compress"
    for path in (folder, candidates):
        shutil.rmtree(path, ignore_errors=True)
    save_model(load_model(context.folder / "train" / "model"), folder)
    decision = _decide(work, folder, candidates, packet)
    best = decision.best("int4")
    if best is not None:
        shutil.move(_place(candidates, best.format) / INT4_FILE, folder / INT4_FILE)
    shutil.rmtree(candidates, ignore_errors=True)
    write_json(context.folder / "compression.json", {"metric": work.prepared.task.metric, **decision.to_dict()})
    write_atomic(context.folder / "compression.svg", draw(decision, work.prepared.task.metric))
    result = {**_result(decision), "seconds": round(time.monotonic() - started, 2)}
    context.emit({"event": "compressed", **result})
    chosen = decision.chosen
    say(
        f"compress: {chosen.format.name} takes {chosen.size / 1e6:.2f} MB for {result['size_before'] / 1e6:.2f} MB; "
        f"{work.prepared.task.metric} {result['metric_before']:.4f} -> {chosen.metric:.4f}"
        + (f"; no time for {', '.join(decision.left_out)}" if decision.left_out else "")
        + ("; too few examples or right answers to judge 4 bits by" if decision.unjudged else "")
    )
    return with_result(packet, "compress", result)


def _decide(work: Workspace, folder: Path, candidates: Path, packet: Packet) -> Decision:
    found, seconds = packet.payload["search"], _seconds_for_formats(packet)
    examples = work.prepared.valid[:SCORE_EXAMPLES]
    settings = work.settings
    calibration = calibration_of(
        work.train, tokens=_CALIBRATION_TOKENS, seed=settings["seed"], source="the training split"
    )

    def make(tried: Format) -> Path:
        if tried.weights == "float32":
            return folder / WEIGHTS_FILE
        if tried.weights == "int8":
            return save_int8(quantize_in_place(load_model(folder), "int8"), folder)
        place = _place(candidates, tried)
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
        method = tried.method
        if method not in ("rtn", "gptq", "awq"):
            raise ValueError(f"unknown method {method}")
        wanted = QuantizationSettings(method=method, group_size=GROUP_SIZE, layout="awq")
        return write_int4(folder, place, wanted, None if method == "rtn" else calibration)

    def where(tried: Format) -> Path:
        return _place(candidates, tried) if tried.weights == "int4" else folder

    def measure(tried: Format) -> Latency:
        backend = load_backend("auto", where(tried), weights=tried.weights)
        try:
            return measure_latency(backend)
        finally:
            backend.close()

    return decide(
        make,
        lambda tried: score_format(work, where(tried), tried.weights, examples),
        measure,
        higher_is_better=work.prepared.task.higher_is_better,
        tolerance=settings.get("tolerance", DEFAULT_TOLERANCE),
        seconds=seconds,
        calibration_seconds=_calibration_seconds(Plan.from_dict(found["plan"]), ModelConfig.from_dict(found["config"])),
        order=tried_formats(target_of(settings)),
    )


def _seconds_for_formats(packet: Packet) -> float | None:
    """What the budget has left, the last step's share of the time for finishing taken off; None without a clock."""
    payload = packet.payload
    if payload["settings"]["steps"] is not None:
        return None
    before = sum(payload[step]["seconds"] for step in ("data", "search", "train")) + since_process_start()
    finish = payload["train"].get("finish_seconds", payload["search"]["finish_seconds"])
    tested = payload["data"]["examples"]["test"] / max(1, payload["search"].get("answers", 0))
    last_step = min(1.0, max(_LAST_STEP_SHARE, tested)) * float(finish)
    return max(0.0, float(payload["settings"]["budget"]) - before - last_step)


def _calibration_seconds(plan: Plan, config: ModelConfig) -> float:
    """About what calibrating takes, at the speed that training was planned with; 0 for a plan without a clock."""
    if not plan.train_seconds or not plan.train_flops:
        return 0.0
    computed = 2 * _CALIBRATION_PASSES * _CALIBRATION_TOKENS * config.num_parameters()
    return computed * plan.train_seconds / plan.train_flops


def _place(candidates: Path, tried: Format) -> Path:
    return candidates / f"{tried.weights}-{tried.method}"


def _result(decision: Decision) -> dict[str, object]:
    """What the next step needs, without times: a build by steps gives the same bytes again.

    formats: those that go into the bundle, float32 apart, by the name under which engines ask for them.
    """
    exact = decision.trials[0]
    kept = {"int8": _tried(decision, "int8"), "int4": decision.best("int4")}
    return {
        "weights": decision.chosen.format.weights,
        "metric_before": exact.metric,
        "metric_after": decision.chosen.metric,
        "size_before": exact.size,
        "tolerance": decision.tolerance,
        "formats": {
            name: {
                "bits": trial.format.bits,
                "method": {"rtn": "round-to-nearest"}.get(trial.format.method, trial.format.method),
                "group_size": GROUP_SIZE if name == "int4" else None,
                "file": trial.file,
                "size": trial.size,
                "metric": trial.metric,
                "loss_bound": trial.loss_bound,
            }
            for name, trial in kept.items()
            if trial is not None
        },
    }


def _tried(decision: Decision, weights: str) -> Trial | None:
    return next((trial for trial in decision.trials if trial.format.weights == weights), None)
