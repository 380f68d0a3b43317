# SPDX-License-Identifier: Apache-2.0
"""A model that was trained with fake quantisation, packed as the tools pack theirs: the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

from open_autoglm.compress.checkpoint_files import store, write_shards
from open_autoglm.compress.int4_file import trained_tensors
from open_autoglm.compress.layer_packing import PackingPlan
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.model_folder import CONFIG_FILE
from open_autoglm.models.packed_writing import quantization_config
from open_autoglm.models.tensor_writing import StoredTensor
from open_autoglm.models.weights import DenseWeight
from open_autoglm.storage import write_json


def write_trained_checkpoint(model: GlmForCausalLM, plan: PackingPlan, out: Path) -> int:
    """Write weights and `config.json` in the layout of the plan that the model was trained with. Returns their bytes.

    Raises CheckpointError for a number that the layout's float type cannot hold, StorageError when the disk refuses.
    """

    def dense(name: str) -> StoredTensor:
        values = model.get_parameter(name).detach().float().numpy()
        return store(DenseWeight(values), plan.dense_type, name)

    tensors = {"model.embed_tokens.weight": dense("model.embed_tokens.weight"), **trained_tensors(model, plan)}
    if not model.config.tie_word_embeddings:
        tensors["lm_head.weight"] = dense("lm_head.weight")
    size = write_shards(tensors, out)
    packing = quantization_config(plan.layout, method="qat", symmetric=plan.settings.symmetric, kept=plan.kept)
    config = {**model.config.to_hf(), "dtype": plan.dense_type, "quantization_config": packing}
    write_json(out / CONFIG_FILE, config)
    return size
