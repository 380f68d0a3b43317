# SPDX-License-Identifier: Apache-2.0
"""The layers of a checkpoint, rounded one after the other and packed as they will lie in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from open_autoglm.compress.activations import HiddenStates, LayerRunner, write_embedded
from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.grids import Rounding, ScaleType
from open_autoglm.compress.layer_rounding import LayerRounder, MatrixReport
from open_autoglm.compress.plugin_rounding import PluginRounding
from open_autoglm.compress.settings import LEAST_GROUP, QuantizationSettings
from open_autoglm.errors import CheckpointError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.layer_loading import load_layer
from open_autoglm.models.packed_codes import PackedLayout
from open_autoglm.models.packed_writing import can_pack, pack_layer
from open_autoglm.models.tensor_names import tensor_shapes
from open_autoglm.models.tensor_writing import StoredTensor, as_float_type
from open_autoglm.models.weights import DenseWeight, WeightReader

_LARGEST_HALF: Final = 65504.0
_LARGEST_FLOAT8: Final = 448.0
_LEAST_CACHED: Final = 1e-6
EXACT: Final = ("mlp.gate.weight", "mlp.gate.e_score_correction_bias")
"""Tensors of a layer that stay in float32: their last bits decide which experts are chosen."""


@dataclass(frozen=True)
class PackedLayer:
    """The tensors of one decoder layer under transformers' names, and what rounding did to its matrices."""

    index: int
    tensors: dict[str, StoredTensor]
    reports: list[MatrixReport]


@dataclass(frozen=True)
class PackingPlan:
    """Everything that decides how layers are packed.

    layout: with the group size that fits the model. kept: full names of modules that stay in floating point.
    scale_type, dense_type: in which scales and the other tensors are stored.
    """

    settings: QuantizationSettings
    layout: PackedLayout
    kept: tuple[str, ...]
    scale_type: ScaleType
    dense_type: str

    @property
    def rounding(self) -> Rounding:
        """How matrices are rounded."""
        wanted = self.settings
        return Rounding(wanted.bits, self.layout.group_size, wanted.symmetric, self.scale_type, wanted.search)


def make_plan(settings: QuantizationSettings, config: ModelConfig, float_type: str) -> PackingPlan:
    """Fit the group size to the model's matrices, and find those that cannot be packed at all.

    float_type: of the checkpoint's embeddings, `float32`, `float16` or `bfloat16`. float32 is stored as float16, which
    the tools want and which loses next to nothing of numbers of this size.
    """
    dense_type = "bfloat16" if float_type == "bfloat16" else "float16"
    sizes = {
        name.removesuffix(".weight"): shape
        for name, shape in tensor_shapes(config)
        if len(shape) == 2 and ".layers." in name and not name.endswith(EXACT)
    }
    group = settings.group_size
    while group > LEAST_GROUP and any(columns % group and columns % LEAST_GROUP == 0 for _, columns in sizes.values()):
        group = group // 2 if group // 2 % LEAST_GROUP == 0 else LEAST_GROUP
    layout = PackedLayout(
        settings.layout,
        group,
        zero_offset=1 if settings.layout == "gptq" else 0,
        bits=settings.bits,
        symmetric=settings.symmetric and settings.layout == "compressed-tensors",
    )
    kept = tuple(name for name, shape in sizes.items() if not can_pack(layout, shape))
    return PackingPlan(settings, layout, kept, dense_type, dense_type)


def pack_layers(
    reader: WeightReader,
    plan: PackingPlan,
    calibration: Calibration | None,
    folder: Path,
    *,
    first: int = 0,
    on_progress: Callable[[], None] | None = None,
) -> Iterator[PackedLayer]:
    """Round and pack the decoder layers from number `first` on; one of them is in memory at a time.

    folder: for the hidden states before each layer, `hidden-NNNNN.f32` of the rounded model and `exact-NNNNN.f32` of
    the exact one; those before layer `first` must be there unless it is 0, before which both are the same. Those before
    layer i are deleted when layer i + 1 is asked for, so that a caller may save layer i before.
    Raises CheckpointError for the weights, StorageError when the disk refuses.
    """
    config = reader.config
    needs_data = plan.settings.needs_data and calibration is not None
    plugin = None if plan.settings.plugin is None else PluginRounding(plan.settings.method)
    states: HiddenStates | None = None
    exact_states: HiddenStates | None = None
    if needs_data and calibration is not None:
        states = HiddenStates(hidden_path(folder, first), calibration.lengths, config.hidden_size)
        if plan.settings.aims_at_exact:
            exact_states = states if first == 0 else replace(states, path=exact_path(folder, first))
        if first == 0:
            table = reader.dense("model.embed_tokens.weight")
            write_embedded(table, calibration.token_ids, states)
    for index in range(first, config.num_hidden_layers):
        layer = load_layer(reader, index)
        reader.forget_pages()
        prefix = f"model.layers.{index}."
        kept = frozenset(name.removeprefix(prefix) for name in plan.kept if name.startswith(prefix))
        rounder = LayerRounder(
            layer,
            plan.rounding,
            plan.settings.method,
            gptq=plan.settings.gptq,
            dense_type=plan.dense_type,
            compensate=plan.settings.compensate,
            kept=kept,
            plugin=plugin,
            on_progress=on_progress,
        )
        runner = None if states is None else LayerRunner(layer, states, config)
        rounded = rounder.run(runner, exact_states)
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in layer.state_dict().items():
            module, _, part = name.rpartition(".")
            if part == "weight" and module in rounded.matrices:
                packed = pack_layer(plan.layout, rounded.matrices[module].weight(), plan.scale_type)
                tensors |= {f"{prefix}{module}.{key}": value for key, value in packed.items()}
                continue
            exact = name in EXACT
            stored = as_float_type(DenseWeight(tensor.detach().numpy()), "float32" if exact else plan.dense_type)
            if not torch.isfinite(tensor).all() or (
                stored.dtype == "F16" and float(tensor.abs().max()) > _LARGEST_HALF
            ):
                raise CheckpointError(f"{prefix}{name} holds numbers that are too large or not finite")
            tensors[prefix + name] = stored
            if not exact:  # the layer computes on as it will be read
                tensor.copy_(torch.from_numpy(DenseWeight(stored.values, stored.dtype == "BF16").float32()))
        if runner is not None and plan.settings.cache_scales:
            tensors |= _cache_scales(prefix, runner)
        following: HiddenStates | None = None
        exact_following: HiddenStates | None = None
        is_last = index + 1 == config.num_hidden_layers
        if runner is not None and states is not None and not is_last:
            following = replace(states, path=hidden_path(folder, index + 1))
            runner.write_outputs(following)
            if rounder.exact is not None:
                exact_following = replace(states, path=exact_path(folder, index + 1))
                rounder.exact.write_outputs(exact_following)
        del layer, runner, rounder
        yield PackedLayer(index, tensors, [replace(item, name=prefix + item.name) for item in rounded.reports])
        for passed in (states, exact_states):
            if passed is not None:
                passed.path.unlink(missing_ok=True)
        states, exact_states = following, exact_following


def _cache_scales(prefix: str, runner: LayerRunner) -> dict[str, StoredTensor]:
    """What a layer's keys and values are divided by before they are kept as float8 (E4M3), under vLLM's names."""
    found: dict[str, StoredTensor] = {}
    for name, largest in zip(("k_scale", "v_scale"), runner.largest_cached(), strict=True):
        scale = np.array([max(largest, _LEAST_CACHED) / _LARGEST_FLOAT8], dtype=np.float32)
        found[f"{prefix}self_attn.{name}"] = as_float_type(DenseWeight(scale), "float32")
    return found


def hidden_path(folder: Path, index: int) -> Path:
    """Where the hidden states before a layer lie."""
    return folder / f"hidden-{index:05d}.f32"


def exact_path(folder: Path, index: int) -> Path:
    """Where those of the exact model lie."""
    return folder / f"exact-{index:05d}.f32"


def count_matrices(reader: WeightReader) -> int:
    """How many matrices `on_progress` will be called for."""
    names = (name for name in reader.names() if ".layers." in name and name.endswith("_proj.weight"))
    return sum(1 for _ in names)
