# SPDX-License-Identifier: Apache-2.0
"""What a plan has to know of a model: its architecture and which formats its folder holds, without its weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from open_autoglm.bundle import open_bundle
from open_autoglm.engine.model_paths import find_model
from open_autoglm.errors import CheckpointError, StorageError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.model_folder import CONFIG_FILE, ROUNDED_FILES, read_config
from open_autoglm.models.packed_layouts import read_packed_layout
from open_autoglm.storage import read_json


@dataclass(frozen=True)
class PlannedModel:
    """A model to be planned for.

    name: for people. stored_bits: of a checkpoint that a tool rounded, 4 or 8; None for floating point. default: the
    format that a bundle names. losses: by format, what the bundle says that it costs of its metric, as a share.
    ready: formats of which the folder has a file of its own. path: what was given; None for an architecture alone.
    """

    name: str
    config: ModelConfig
    stored_bits: int | None = None
    default: str | None = None
    losses: dict[str, float] = field(default_factory=dict)
    ready: tuple[str, ...] = ()
    path: str | None = None


def read_model(model: str | Path) -> PlannedModel:
    """Read a bundle, a checkpoint folder, the NAME of `runs/NAME`, or a `config.json` alone; never weights.

    Raises BundleError or CheckpointError.
    """
    path = Path(model)
    if path.is_file():
        return _read_file(path)
    folder = find_model(model)
    config, layout = read_config(folder)
    ready = tuple(name for name, file in ROUNDED_FILES.items() if (folder / file).is_file())
    known = PlannedModel(
        folder.resolve().name, config, None if layout is None else layout.bits, ready=ready, path=str(model)
    )
    if not (folder / "bundle.json").is_file():
        return known
    bundle = open_bundle(folder, verify=False)
    manifest, sign = bundle.manifest, 1 if bundle.task.higher_is_better else -1
    losses = {
        name: sign * (record.metric_before - record.metric_after) / abs(record.metric_before)
        for name, record in manifest.quantizations.items()
        if record.metric_before and record.metric_after is not None
    }
    return replace(
        known,
        name=manifest.name,
        default=manifest.default_weights,
        losses=losses,
    )


def _read_file(path: Path) -> PlannedModel:
    try:
        values: Any = read_json(path)
    except (StorageError, RecursionError) as error:
        raise CheckpointError(str(error) or f"cannot read {path}: it is nested too deeply") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, as a {CONFIG_FILE} does")
    settings = values.get("quantization_config")
    layout = None if settings is None else read_packed_layout(settings)
    name = path.resolve().parent.name if path.name == CONFIG_FILE else path.stem
    return PlannedModel(name, ModelConfig.from_hf(values), None if layout is None else layout.bits)
