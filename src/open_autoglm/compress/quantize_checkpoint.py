# SPDX-License-Identifier: Apache-2.0
"""A checkpoint quantised into another folder, layer by layer: bounded memory, and a kill costs one layer at most."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.checkpoint_files import copy_companions, float_type_of, store, write_shards
from open_autoglm.compress.layer_packing import PackedLayer, PackingPlan, count_matrices, make_plan, pack_layers
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.models.hf_config import CHATGLM_ARCHITECTURES
from open_autoglm.models.mapped_tensors import MappedTensors
from open_autoglm.models.model_folder import CONFIG_FILE, weight_files
from open_autoglm.models.packed_writing import quantization_config
from open_autoglm.models.tensor_writing import StoredTensor, write_safetensors
from open_autoglm.models.weights import WeightReader, open_weights
from open_autoglm.storage import FolderLock, explained, read_json, write_json
from open_autoglm.version import __version__

REPORT_FILE: Final = "quantization.json"
_WORK: Final = ".work"
_STATE: Final = "state.json"

Progress = Callable[[int, int], None]
"""Called with how many matrices are done, and how many there are."""


@dataclass(frozen=True)
class QuantizationOutcome:
    """folder: a checkpoint in the Hugging Face layout. report: the content of its `quantization.json`."""

    folder: Path
    report: dict[str, Any]


def quantize_checkpoint(
    model: Path,
    out: Path,
    settings: QuantizationSettings,
    calibration: Calibration | None,
    *,
    on_progress: Progress | None = None,
) -> QuantizationOutcome:
    """Quantise the linear layers of a checkpoint; embeddings, `lm_head` and routers keep their type.

    model: its folder. out: where the quantised checkpoint is written, a new folder or one where the same was begun:
    layers that are finished are kept, and the bytes are those of a run that nothing disturbed.
    Raises ConfigurationError for an `out` that holds something else and when data is missing, CheckpointError for the
    model, StorageError for the disk, RunLockedError when another process works on `out`.
    """
    started = time.monotonic()
    if settings.needs_data and calibration is None:
        asked = "--kv-cache-scales" if settings.cache_scales else f"--method {settings.method}"
        raise ConfigurationError(
            f"{asked} needs --calibration DATA: text or examples like what the model will see; "
            "--method rtn alone needs none"
        )
    if out.resolve() == model.resolve():
        raise ConfigurationError(f"--out {out} is the model itself; choose another folder")
    with open_weights(model) as reader, FolderLock(out):
        _check_source(model, reader)
        plan = make_plan(settings, reader.config, float_type_of(reader))
        state = _state_of(model, plan, calibration)
        if (out / REPORT_FILE).is_file() and (out / CONFIG_FILE).is_file():
            report = read_json(out / REPORT_FILE)
            if isinstance(report, dict) and report.get("state") == state:
                return QuantizationOutcome(out, report)
        if (out / CONFIG_FILE).is_file():
            raise ConfigurationError(f"--out {out} holds another model already; choose another folder")
        work = _open_work(out, state)
        reports, seconds = _finished(work)
        resumed = len(reports)
        _pack_remaining(reader, plan, calibration, work, reports, seconds, on_progress)
        size = _assemble(model, out, work, reader, plan)
        report = {
            "settings": settings.to_dict(),
            "group_size": plan.layout.group_size,
            "kept": list(plan.kept),
            "calibration": None if calibration is None else calibration.to_dict(),
            "size": size,
            "source_size": sum(file.stat().st_size for file in weight_files(model)),
            "matrices": [item for layer in reports for item in layer],
            "layer_seconds": seconds,
            "seconds": round(time.monotonic() - started, 2),
            "resumed_at_layer": resumed,
            "peak_memory": _peak_memory(),
            "version": __version__,
            "state": state,
        }
        write_json(out / REPORT_FILE, report)
        _write_config(model, out, reader, plan)
        shutil.rmtree(work, ignore_errors=True)
    (out / ".lock").unlink(missing_ok=True)
    return QuantizationOutcome(out, report)


def _check_source(model: Path, reader: WeightReader) -> None:
    if reader.layout is not None:
        raise CheckpointError(f"{model} is quantised already; quantise the checkpoint that it was made from")


def state_of_run(model: Path, settings: QuantizationSettings, calibration: Calibration | None) -> str:
    """What the report of a quantisation with these arguments has as its `state`. Raises CheckpointError."""
    with open_weights(model) as reader:
        _check_source(model, reader)
        return _state_of(model, make_plan(settings, reader.config, float_type_of(reader)), calibration)


def _state_of(model: Path, plan: PackingPlan, calibration: Calibration | None) -> str:
    """A digest of everything that decides the result."""
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weight_files(model)]
    said = {
        "version": __version__,
        "settings": plan.settings.to_dict(),
        "calibration": None if calibration is None else calibration.digest(),
        "files": files,
    }
    content = (model / CONFIG_FILE).read_bytes() + json.dumps(said, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _open_work(out: Path, state: str) -> Path:
    """The folder of what is finished; emptied when it belongs to another run."""
    work = out / _WORK
    with explained(work, "write"):
        work.mkdir(parents=True, exist_ok=True)
        known = read_json(work / _STATE) if (work / _STATE).is_file() else None
        if known != {"state": state}:
            shutil.rmtree(work)
            work.mkdir()
            write_json(work / _STATE, {"state": state})
    return work


def _finished(work: Path) -> tuple[list[list[dict[str, Any]]], list[float]]:
    """The reports and seconds of the layers that are done: those without a gap from the first."""
    reports: list[list[dict[str, Any]]] = []
    seconds: list[float] = []
    while _part(work, len(reports)).is_file():
        said = read_json(_part(work, len(reports)).with_suffix(".json"))
        reports.append(said["matrices"])
        seconds.append(said["seconds"])
    return reports, seconds


def _part(work: Path, index: int) -> Path:
    return work / f"layer-{index:05d}.safetensors"


def _pack_remaining(  # noqa: PLR0917
    reader: WeightReader,
    plan: PackingPlan,
    calibration: Calibration | None,
    work: Path,
    reports: list[list[dict[str, Any]]],
    seconds: list[float],
    on_progress: Progress | None,
) -> None:
    total, done = count_matrices(reader), sum(len(layer) for layer in reports)

    def tick() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    began = time.monotonic()
    layers = pack_layers(reader, plan, calibration, work, first=len(reports), on_progress=tick)
    for packed in layers:
        now = time.monotonic()
        _save(packed, work, now - began)
        reports.append([item.to_dict() for item in packed.reports])
        seconds.append(round(now - began, 2))
        began = now


def _save(packed: PackedLayer, work: Path, seconds: float) -> None:
    """The tensors last: with them the layer is finished."""
    path = _part(work, packed.index)
    matrices = [item.to_dict() for item in packed.reports]
    write_json(path.with_suffix(".json"), {"matrices": matrices, "seconds": round(seconds, 2)})
    write_safetensors(packed.tensors, path, {})


def _assemble(model: Path, out: Path, work: Path, reader: WeightReader, plan: PackingPlan) -> int:
    """Write the weights of all layers, and what lies around them, into files of at most 4 GB. Returns their bytes."""
    parts = [MappedTensors(_part(work, index)) for index in range(reader.config.num_hidden_layers)]
    tensors: dict[str, StoredTensor] = {"model.embed_tokens.weight": _dense(reader, plan, "model.embed_tokens.weight")}
    for part in parts:
        tensors |= {name: StoredTensor.read(part, name) for name in part.entries}
    tensors["model.norm.weight"] = _dense(reader, plan, "model.norm.weight")
    if not reader.config.tie_word_embeddings:
        tensors["lm_head.weight"] = _dense(reader, plan, "lm_head.weight")
    total = write_shards(tensors, out)
    for part in parts:
        part.close()
    copy_companions(model, out, without=(REPORT_FILE,))
    return total


def _dense(reader: WeightReader, plan: PackingPlan, name: str) -> StoredTensor:
    return store(reader.dense(name), plan.dense_type, name)


def _write_config(model: Path, out: Path, reader: WeightReader, plan: PackingPlan) -> None:
    """`config.json`, last: with it the folder is a model. ChatGLM's becomes the `GlmForCausalLM` that is the same."""
    config = read_json(model / CONFIG_FILE)
    if (config.get("architectures") or [""])[0] in CHATGLM_ARCHITECTURES or config.get("model_type") == "chatglm":
        config = reader.config.to_hf()
    for name in ("auto_map", "torch_dtype"):
        config.pop(name, None)
    settings = plan.settings
    config["dtype"] = plan.dense_type
    config["quantization_config"] = quantization_config(
        plan.layout,
        method=settings.method,
        symmetric=settings.symmetric,
        kept=plan.kept,
        cache_scales=settings.cache_scales,
    )
    write_json(out / CONFIG_FILE, config)


def _peak_memory() -> int:
    """Bytes that this process took at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
