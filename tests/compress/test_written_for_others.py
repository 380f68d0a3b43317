# SPDX-License-Identifier: Apache-2.0
"""Our files read by compressed-tensors and by transformers over it, and the 4-bit file of a build by our engines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from transformers import AutoModelForCausalLM

from open_autoglm.compress.int4_file import write_int4
from open_autoglm.compress.quantize_checkpoint import quantize_checkpoint
from open_autoglm.compress.settings import QuantizationSettings
from open_autoglm.engine.backends import load_backend
from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.models.checkpoint import load_model
from open_autoglm.models.glm import PackedSequences
from open_autoglm.models.packed_codes import PackedLayout
from open_autoglm.models.packed_writing import pack_layer
from open_autoglm.models.quantized_linear import PackedInt4Linear, unpack_in_place
from open_autoglm.models.weight_types import Int4Weight
from open_autoglm.models.weights import Int8Weight, open_weights
from tests.compress.samples import load_tensors, random_calibration
from tests.engine.test_native_backend import Sequences
from tests.models.random_checkpoints import CLASSES, save_random_checkpoint


def logits_of(folder: Path, token_ids: np.ndarray, weights: str = "float32") -> np.ndarray:
    model = load_model(folder, weights=weights)
    with torch.no_grad():
        lengths = torch.tensor([len(token_ids)])
        return model.logits(model(torch.from_numpy(token_ids), PackedSequences(lengths))).numpy()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, -1), (8, -1), (8, 32)])
def test_compressed_tensors_unpacks_what_we_packed(tmp_path: Path, bits: int, group_size: int, symmetric: bool) -> None:
    save_random_checkpoint(tmp_path / "float", "GlmForCausalLM", num_hidden_layers=1)
    settings = QuantizationSettings("rtn", bits, group_size, symmetric, "compressed-tensors")
    quantize_checkpoint(tmp_path / "float", tmp_path / "out", settings, None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    [scheme] = QuantizationConfig.model_validate(config).config_groups.values()
    tensors = load_tensors(tmp_path / "out")
    library = BaseCompressor.get_value_from_registry("pack-quantized")
    with open_weights(tmp_path / "out") as reader:
        for name in ("self_attn.v_proj", "mlp.down_proj"):
            prefix = f"model.layers.0.{name}."
            parts = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            parts["weight_scale"] = parts["weight_scale"].float()
            theirs = library.decompress(parts, scheme)["weight"]
            np.testing.assert_allclose(reader.linear(prefix[:-1]).float32(), theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("architecture", [name for name in CLASSES if "Moe" not in name])
def test_transformers_computes_the_same_with_a_symmetric_checkpoint(tmp_path: Path, architecture: str) -> None:
    save_random_checkpoint(tmp_path / "float", architecture, num_hidden_layers=2)
    settings = QuantizationSettings("gptq", 4, 32, True, "compressed-tensors")
    quantize_checkpoint(tmp_path / "float", tmp_path / "out", settings, random_calibration())
    token_ids = np.random.default_rng(0).integers(0, 256, 20)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        found = theirs(torch.from_numpy(token_ids)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits_of(tmp_path / "out", token_ids), found, atol=1e-4)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
def test_scales_of_the_cache_are_those_of_the_keys_that_transformers_keeps(
    tmp_path: Path, architecture: str, method: str
) -> None:
    save_random_checkpoint(tmp_path / "float", architecture, num_hidden_layers=2)
    settings = QuantizationSettings(method, 8, -1, True, "compressed-tensors", cache_scales=True)
    data = random_calibration(sequences=4)
    quantize_checkpoint(tmp_path / "float", tmp_path / "out", settings, data)
    scheme = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert QuantizationArgs.model_validate(scheme).num_bits == 8
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    largest = np.zeros((2, 2))
    for row in np.split(data.token_ids, np.cumsum(data.lengths)[:-1]):
        with torch.no_grad():
            cache = theirs(torch.from_numpy(row.astype(np.int64))[None], use_cache=True).past_key_values
        for place, layer in enumerate(cache.layers):
            found = [float(layer.keys.abs().max()), float(layer.values.abs().max())]
            largest[place] = np.maximum(largest[place], found)
    tensors = load_tensors(tmp_path / "out")
    for place in range(2):
        for part, name in enumerate(("k_scale", "v_scale")):
            scale = tensors[f"model.layers.{place}.self_attn.{name}"]
            assert scale.shape == (1,)
            assert float(scale) == pytest.approx(largest[place, part] / 448, rel=2e-3)
    # Our engines keep scales of their own for each token, and pass these over.
    tokens = np.random.default_rng(0).integers(0, 256, 20)
    assert np.isfinite(logits_of(tmp_path / "out", tokens)).all()
    load_backend("native", tmp_path / "out", weights="float32", threads=1).close()
    with pytest.raises(ConfigurationError, match="choose --format compressed-tensors"):
        QuantizationSettings(method, layout="gptq", cache_scales=True)
    with pytest.raises(ConfigurationError, match="--kv-cache-scales needs --calibration"):
        quantize_checkpoint(tmp_path / "float", tmp_path / "none", settings, None)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", list(CLASSES))
def test_the_4_bit_file_of_a_build(tmp_path: Path, architecture: str, tied: bool) -> None:
    folder = tmp_path / "model"
    save_random_checkpoint(folder, architecture, num_hidden_layers=2, tie_word_embeddings=tied)
    settings = QuantizationSettings("gptq", group_size=32, layout="awq")
    path = write_int4(folder, folder, settings, random_calibration())
    assert path.stat().st_size < 0.35 * (folder / "model.safetensors").stat().st_size
    assert not [file for file in folder.iterdir() if file.is_dir()]  # the hidden states are gone
    with open_weights(folder, int4=True) as reader:
        assert reader.is_int4
        assert isinstance(reader.linear("lm_head"), Int8Weight)
        assert isinstance(reader.linear("model.layers.1.self_attn.q_proj"), Int4Weight)
    token_ids = np.random.default_rng(0).integers(0, 256, 40)
    reference = logits_of(folder, token_ids, "int4")
    exact = logits_of(folder, token_ids)
    assert np.square(reference - exact).mean() < 0.05 * np.square(exact).mean()
    backend = load_backend("native", folder, weights="int4")
    backend.allocate(64, 16)
    found = backend.step(Sequences([token_ids]).batch({0: (0, 40)}))
    backend.close()
    assert np.abs(found - reference).mean() < 0.05 * np.abs(reference).mean()
    model = load_model(folder, weights="int4")
    assert any(isinstance(module, PackedInt4Linear) for module in model.modules())
    unpack_in_place(model)
    assert not any(isinstance(module, PackedInt4Linear) for module in model.modules())
    with torch.no_grad():
        again = model.logits(model(torch.from_numpy(token_ids), PackedSequences(torch.tensor([40]))))
    np.testing.assert_allclose(again.numpy(), reference, atol=1e-4)


def test_a_4_bit_file_that_does_not_say_how_it_is_packed_is_refused(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path, "GlmForCausalLM", num_hidden_layers=1)
    (tmp_path / "int4.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="does not say how it is packed"):
        open_weights(tmp_path, int4=True)


def test_a_scale_that_its_type_cannot_hold_is_refused() -> None:
    codes, zeros = np.full((8, 32), 3, dtype=np.uint8), np.full((8, 1), 8, dtype=np.uint8)
    weight = Int4Weight(codes, np.full((8, 1), 1e6, dtype=np.float32), zeros, 32)
    with pytest.raises(CheckpointError, match="does not fit into float16"):
        pack_layer(PackedLayout("awq", 32), weight, "float16")
