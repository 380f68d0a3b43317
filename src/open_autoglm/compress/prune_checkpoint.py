# SPDX-License-Identifier: Apache-2.0
"""A checkpoint with fewer layers, heads and channels, written into another folder; one layer is in memory at a time."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from open_autoglm.compress.activations import HiddenStates, LayerRunner, write_embedded
from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.checkpoint_files import check_new, float_type_of, store, write_shards
from open_autoglm.compress.derived_model import Derivation, copy_surroundings, finish_model
from open_autoglm.compress.importance import block_influence
from open_autoglm.compress.layer_packing import hidden_path
from open_autoglm.compress.layer_pruning import LayerCut, prune_layer
from open_autoglm.compress.pruned_shape import PruningSettings, pruned_config
from open_autoglm.errors import CheckpointError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.layer_loading import load_layer
from open_autoglm.models.model_folder import CONFIG_FILE, weight_files
from open_autoglm.models.tensor_writing import StoredTensor
from open_autoglm.models.weights import DenseWeight, WeightReader, open_weights
from open_autoglm.storage import explained, write_json

PRUNING_FILE: Final = "pruning.json"

Progress = Callable[[int, int], None]
"""Called with how many layers are done, and how many there are to do."""


@dataclass(frozen=True)
class PruningOutcome:
    """folder: a bundle if the model was one, else a checkpoint. report: the content of its `pruning.json`."""

    folder: Path
    report: dict[str, Any]


def prune_checkpoint(
    model: Path, out: Path, settings: PruningSettings, calibration: Calibration, *, on_progress: Progress | None = None
) -> PruningOutcome:
    """Remove what adds least on the calibration data: first layers, then in each that stays heads and channels.

    model: a GLM or GLM-4 in floating point, as a folder. out: a new folder; it appears when all is done.
    Raises ConfigurationError for settings that do not fit the model, CheckpointError for a model that cannot be pruned,
    StorageError when the disk refuses.
    """
    started = time.monotonic()
    check_new(out, model)
    with explained(out, "write"):
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.resolve().parent))
    staging = holder / "model"
    try:
        staging.mkdir()
        with open_weights(model) as reader:
            if reader.layout is not None:
                raise CheckpointError(f"{model} is quantised; prune the checkpoint that it was made from")
            before, after = reader.config, pruned_config(reader.config, settings)
            float_type = float_type_of(reader)
            run = _Run(reader, calibration, holder, before, after, on_progress)
            influence = run.influence() if after.num_hidden_layers < before.num_hidden_layers else None
            kept = _most_influential(influence, after.num_hidden_layers) if influence else list(range(run.layers))
            tensors, cuts = run.prune(kept, float_type, repair=settings.repair)
            size = write_shards(tensors, staging)
        copy_surroundings(model, staging)
        write_json(staging / CONFIG_FILE, {**after.to_hf(), "dtype": float_type})
        report = {
            "settings": asdict(settings),
            "before": before.to_hf() | {"parameters": before.num_parameters()},
            "after": after.to_hf() | {"parameters": after.num_parameters()},
            "calibration": calibration.to_dict(),
            "block_influence": influence,
            "layers": [{"layer": index, **asdict(cut)} for index, cut in zip(kept, cuts, strict=True)],
            "size": size,
            "source_size": sum(file.stat().st_size for file in weight_files(model)),
            "seconds": round(time.monotonic() - started, 2),
        }
        pruning = {"calibration_sha256": calibration.digest(), **asdict(settings)}
        made = Derivation(
            (PRUNING_FILE, report), [model], seconds={"prune": report["seconds"]}, lineage={"pruning": pruning}
        )
        finish_model(staging, out, made)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
    return PruningOutcome(out, report)


class _Run:
    """Goes through the layers of one model, with the hidden states before each in a file."""

    def __init__(  # noqa: PLR0917
        self,
        reader: WeightReader,
        calibration: Calibration,
        work: Path,
        before: ModelConfig,
        after: ModelConfig,
        on_progress: Progress | None,
    ) -> None:
        self._reader, self._calibration, self._work = reader, calibration, work
        self._before, self._after, self._on_progress = before, after, on_progress
        self.layers = before.num_hidden_layers
        passes = 2 if after.num_hidden_layers < self.layers else 1
        self._done, self._total = 0, self.layers * (passes - 1) + after.num_hidden_layers

    def influence(self) -> list[float]:
        """The block influence of each layer of the whole model."""
        states, found = self._embedded(), list[float]()
        for index in range(self.layers):
            layer = load_layer(self._reader, index)
            self._reader.forget_pages()
            following = replace(states, path=hidden_path(self._work, index + 1))
            LayerRunner(layer, states, self._before).write_outputs(following)
            found.append(block_influence(states, following))
            states.path.unlink()
            states = following
            self._tick()
        states.path.unlink()
        return found

    def prune(
        self, kept: list[int], float_type: str, *, repair: bool
    ) -> tuple[dict[str, StoredTensor], list[LayerCut]]:
        """The tensors of the layers that stay, and what was taken from each."""
        reader, states = self._reader, self._embedded()
        tensors = {"model.embed_tokens.weight": self._dense("model.embed_tokens.weight", float_type)}
        cuts: list[LayerCut] = []
        for place, index in enumerate(kept):
            layer = load_layer(reader, index)
            reader.forget_pages()
            cuts.append(prune_layer(layer, states, self._before, self._after, repair=repair))
            for name, tensor in layer.state_dict().items():
                full = f"model.layers.{place}.{name}"
                tensors[full] = store(DenseWeight(tensor.detach().numpy()), float_type, full)
                stored = tensors[full]  # the layers after it see what is read back
                tensor.copy_(torch.from_numpy(DenseWeight(stored.values, stored.dtype == "BF16").float32()))
            following = replace(states, path=hidden_path(self._work, place + 1))
            if place + 1 < len(kept):
                LayerRunner(layer, states, self._after).write_outputs(following)
            states.path.unlink()
            states = following
            self._tick()
        tensors["model.norm.weight"] = self._dense("model.norm.weight", float_type)
        if not reader.config.tie_word_embeddings:
            tensors["lm_head.weight"] = self._dense("lm_head.weight", float_type)
        return tensors, cuts

    def _embedded(self) -> HiddenStates:
        states = HiddenStates(hidden_path(self._work, 0), self._calibration.lengths, self._before.hidden_size)
        write_embedded(self._reader.dense("model.embed_tokens.weight"), self._calibration.token_ids, states)
        return states

    def _dense(self, name: str, float_type: str) -> StoredTensor:
        stored = store(self._reader.dense(name), float_type, name)
        return StoredTensor(stored.dtype, stored.values.copy())  # it outlives the mapped file

    def _tick(self) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _most_influential(influence: list[float], count: int) -> list[int]:
    ranked = sorted(range(len(influence)), key=lambda index: influence[index], reverse=True)
    return sorted(ranked[:count])
