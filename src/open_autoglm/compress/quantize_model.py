# SPDX-License-Identifier: Apache-2.0
"""A model quantised into another folder: a bundle becomes a bundle that names its parent, a checkpoint a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from open_autoglm.bundle import QuantizationRecord
from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.checkpoint_files import check_new
from open_autoglm.compress.derived_model import Derivation, clear_measured, finish_model, is_bundle
from open_autoglm.compress.quantize_checkpoint import (
    REPORT_FILE,
    Progress,
    QuantizationOutcome,
    quantize_checkpoint,
    state_of_run,
)
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.errors import ConfigurationError
from open_autoglm.models.model_folder import INDEX_FILE, WEIGHTS_FILE
from open_autoglm.storage import explained, read_json


def quantize_model(
    model: Path,
    out: Path,
    settings: QuantizationSettings,
    calibration: Calibration | None,
    *,
    on_progress: Progress | None = None,
) -> QuantizationOutcome:
    """Quantise a bundle or a checkpoint, as `quantize_checkpoint` does; what comes of a bundle is one.

    Of a bundle, `out` appears whole, by one rename; what was begun lies beside it until then, and the same call again
    goes on with it. The new bundle has no metrics: the parent's are not true of it, and nothing has been measured yet.
    Raises also BundleError for a bundle that is not what it was written as.
    """
    if not is_bundle(model):
        return quantize_checkpoint(model, out, settings, calibration, on_progress=on_progress)
    if out.resolve() != model.resolve() and is_bundle(out):
        report = read_json(out / REPORT_FILE) if (out / REPORT_FILE).is_file() else None
        if isinstance(report, dict) and report.get("state") == state_of_run(model, settings, calibration):
            return QuantizationOutcome(out, report)
        raise ConfigurationError(f"--out {out} holds another model already; choose another folder")
    check_new(out, model)
    staging = out.resolve().with_name(f".{out.resolve().name}.staging")
    report = quantize_checkpoint(model, staging, settings, calibration, on_progress=on_progress).report
    clear_measured(staging, without=(REPORT_FILE,))
    with explained(staging, "write"):
        (staging / ".lock").unlink(missing_ok=True)
    finish_model(staging, out, _derivation(model, staging, report))
    return QuantizationOutcome(out, read_json(out / REPORT_FILE))


def _derivation(model: Path, staging: Path, report: dict[str, Any]) -> Derivation:
    settings = report["settings"]
    form = f"int{settings['bits']}"
    group_size = int(report["group_size"])
    record = QuantizationRecord(
        bits=settings["bits"],
        method=settings["method"],
        group_size=group_size if group_size > 0 else None,
        file=WEIGHTS_FILE if (staging / WEIGHTS_FILE).is_file() else INDEX_FILE,
        size=report["size"],
        metric_before=None,
        metric_after=None,
        symmetric=settings["symmetric"],
    )
    return Derivation(
        (REPORT_FILE, report),
        (model,),
        seconds={"quantize": report["seconds"]},
        quantizations={form: record},
        default_weights=form,
        lineage={"quantization": {"settings": settings, "calibration": report["calibration"]}},
    )
