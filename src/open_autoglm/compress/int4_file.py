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

from open_autoglm.compress.calibration import Calibration
from open_autoglm.compress.layer_packing import PackingPlan, make_plan, pack_layers
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.models.model_folder import INT4_FILE
from open_autoglm.models.packed_writing import quantization_config
from open_autoglm.models.quantized_linear import round_to_int8
from open_autoglm.models.tensor_writing import StoredTensor, write_safetensors
from open_autoglm.models.weights import WeightReader, open_weights


def write_int4(folder: Path, out: Path, settings: QuantizationSettings, calibration: Calibration | None) -> Path:
    """Quantise the model in `folder` into `out/int4.safetensors`. Returns its path.

    settings: with the layout `awq`. Raises CheckpointError for the model, StorageError when the disk refuses.
    """
    with open_weights(folder) as reader, tempfile.TemporaryDirectory(dir=out) as work:
        plan = make_plan(settings, reader.config, "float32")
        plan = PackingPlan(plan.settings, plan.layout, plan.kept, "float16", "float32")
        tensors = _rounded_table(reader, "model.embed_tokens")
        for layer in pack_layers(reader, plan, calibration, Path(work)):
            tensors |= layer.tensors
        tensors["model.norm.weight"] = StoredTensor.of(reader.dense("model.norm.weight").float32())
        if not reader.config.tie_word_embeddings:
            tensors |= _rounded_table(reader, "lm_head")
        config = quantization_config(plan.layout, method=settings.method, symmetric=settings.symmetric, kept=plan.kept)
        write_safetensors(tensors, out / INT4_FILE, {"quantization_config": json.dumps(config)})
    return out / INT4_FILE


def _rounded_table(reader: WeightReader, module: str) -> dict[str, StoredTensor]:
    """An embedding or output matrix in int8."""
    table = np.array(reader.dense(f"{module}.weight").float32())
    values, scale = round_to_int8(torch.from_numpy(table))
    return {f"{module}.weight": StoredTensor.of(values.numpy()), f"{module}.scale": StoredTensor.of(scale.numpy())}
