# SPDX-License-Identifier: Apache-2.0
"""`int4.safetensors`: the 4-bit weights that a build leaves beside the exact ones, for our own engines.

Linear layers are packed as AWQ's are, by whichever method; embeddings and the output matrix take int8 with one scale
per row, as in `int8.safetensors`; the rest is float32. The header says how it is packed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.checkpoint_files import store
from open_autoglm.compress.fake_quantization import FakeQuantizedLinear
from open_autoglm.compress.layer_packing import EXACT, PackingPlan, make_plan, pack_layers
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.model_folder import INT4_FILE
from open_autoglm.models.packed_writing import pack_layer, quantization_config
from open_autoglm.models.quantized_linear import round_to_int8
from open_autoglm.models.tensor_writing import StoredTensor, write_safetensors
from open_autoglm.models.weights import DenseWeight, WeightReader, open_weights


def write_int4(folder: Path, out: Path, settings: QuantizationSettings, calibration: Calibration | None) -> Path:
    """Quantise the model in `folder` into `out/int4.safetensors`. Returns its path.

    settings: with the layout `awq`. Raises CheckpointError for the model, StorageError when the disk refuses.
    """
    with open_weights(folder) as reader, tempfile.TemporaryDirectory(dir=out) as work:
        plan = int4_plan(reader.config, settings)
        tensors = _rounded_table("model.embed_tokens", _matrix(reader, "model.embed_tokens"))
        for layer in pack_layers(reader, plan, calibration, Path(work)):
            tensors |= layer.tensors
        tensors["model.norm.weight"] = StoredTensor.of(reader.dense("model.norm.weight").float32())
        if not reader.config.tie_word_embeddings:
            tensors |= _rounded_table("lm_head", _matrix(reader, "lm_head"))
        return _write(tensors, plan, settings.method, out)


def int4_plan(config: ModelConfig, settings: QuantizationSettings) -> PackingPlan:
    """How the weights of a model lie in `int4.safetensors`."""
    plan = make_plan(settings, config, "float32")
    return PackingPlan(plan.settings, plan.layout, plan.kept, "float16", "float32")


def write_trained_int4(model: GlmForCausalLM, plan: PackingPlan, out: Path) -> Path:
    """Write a model that was trained with fake quantisation, tables too, into `out/int4.safetensors`.

    plan: of `int4_plan`, which it was trained with. Returns the path. Raises StorageError when the disk refuses.
    """
    tensors = _rounded_table("model.embed_tokens", model.model.embed_tokens.weight.detach())
    tensors |= trained_tensors(model, plan)
    if not model.config.tie_word_embeddings:
        tensors |= _rounded_table("lm_head", model.lm_head.weight.detach())
    return _write(tensors, plan, "qat", out)


def trained_tensors(model: GlmForCausalLM, plan: PackingPlan) -> dict[str, StoredTensor]:
    """The layers and the last norm of a model that was trained with fake quantisation, packed."""
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in model.state_dict().items():
        module, _, part = name.rpartition(".")
        if not name.startswith(("model.layers.", "model.norm.")):
            continue
        linear = model.get_submodule(module)
        if part == "weight" and isinstance(linear, FakeQuantizedLinear):
            packed = pack_layer(plan.layout, linear.rounded().weight(), plan.scale_type)
            tensors |= {f"{module}.{key}": value for key, value in packed.items()}
        else:
            float_type = "float32" if name.endswith(EXACT) else plan.dense_type
            tensors[name] = store(DenseWeight(tensor.detach().float().numpy()), float_type, name)
    return tensors


def _write(tensors: dict[str, StoredTensor], plan: PackingPlan, method: str, out: Path) -> Path:
    symmetric = plan.settings.symmetric
    config = quantization_config(plan.layout, method=method, symmetric=symmetric, kept=plan.kept)
    write_safetensors(tensors, out / INT4_FILE, {"quantization_config": json.dumps(config)})
    return out / INT4_FILE


def _matrix(reader: WeightReader, module: str) -> Tensor:
    return torch.from_numpy(np.array(reader.dense(f"{module}.weight").float32()))


def _rounded_table(module: str, table: Tensor) -> dict[str, StoredTensor]:
    """An embedding or output matrix in int8."""
    values, scale = round_to_int8(table)
    return {f"{module}.weight": StoredTensor.of(values.numpy()), f"{module}.scale": StoredTensor.of(scale.numpy())}
