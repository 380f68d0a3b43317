# SPDX-License-Identifier: Apache-2.0
"""The GLM definition gives transformers' logits, from weights written by either side."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Glm4Config, Glm4ForCausalLM, GlmConfig
from transformers import GlmForCausalLM as HfGlmForCausalLM

from open_autoglm.errors import CheckpointError
from open_autoglm.models.checkpoint import load_model, save_int8, save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "head_dim": 32,
    "num_attention_heads": 4,
}


def make_model(**changes: object) -> GlmForCausalLM:
    config = ModelConfig(**{**SHAPE, "num_key_value_heads": 2, "eos_token_ids": (0,), "pad_token_id": 0, **changes})
    model = GlmForCausalLM(config)
    model.initialize(torch.Generator().manual_seed(3))
    for parameter in model.parameters():  # norms and biases too, or parity would not see them
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0, 0.3, generator=torch.Generator().manual_seed(4))
    return model.eval()


def our_logits(model: GlmForCausalLM, token_ids: torch.Tensor) -> torch.Tensor:
    rows, length = token_ids.shape
    with torch.no_grad():
        hidden = model(token_ids.flatten(), PackedSequences(torch.full((rows,), length)))
        return model.logits(hidden).view(rows, length, -1)


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("key_value_heads", "rotary"), [(1, 0.5), (2, 1.0), (4, 0.5)])
def test_transformers_loads_what_we_write_and_agrees(
    tmp_path: Path, architecture: str, tied: bool, key_value_heads: int, rotary: float
) -> None:
    model = make_model(
        architecture=architecture,
        tie_word_embeddings=tied,
        attention_bias=not tied,
        num_key_value_heads=key_value_heads,
        partial_rotary_factor=rotary,
    )
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert type(theirs).__name__ == architecture
    token_ids = torch.randint(0, 320, (2, 23), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = theirs(token_ids).logits
    torch.testing.assert_close(our_logits(model, token_ids), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("theirs", "config"), [(HfGlmForCausalLM, GlmConfig), (Glm4ForCausalLM, Glm4Config)])
def test_we_load_what_transformers_writes(tmp_path: Path, theirs: type, config: type, sharded: bool) -> None:
    torch.manual_seed(0)
    model = theirs(config(**SHAPE, num_key_value_heads=2, attention_bias=True, pad_token_id=0)).eval()
    model.save_pretrained(tmp_path, max_shard_size="200KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() is sharded
    token_ids = torch.randint(0, 320, (1, 40))
    with torch.no_grad():
        expected = model(token_ids).logits
    torch.testing.assert_close(our_logits(load_model(tmp_path), token_ids), expected, rtol=1e-4, atol=1e-4)


def test_no_token_sees_another_sequence() -> None:
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(0, 320, (length,), generator=generator) for length in (5, 17, 1, 9)]
    with torch.no_grad():
        packed = model(torch.cat(sequences), PackedSequences(torch.tensor([5, 17, 1, 9])))
        alone = torch.cat([model(sequence, PackedSequences(torch.tensor([len(sequence)]))) for sequence in sequences])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_int8_is_close_smaller_and_the_same_when_read_back(tmp_path: Path, tied: bool) -> None:
    model = make_model(tie_word_embeddings=tied, attention_bias=True)
    save_model(model, tmp_path)
    rounded = load_model(tmp_path, weights="int8")
    path = save_int8(rounded, tmp_path)
    again = load_model(tmp_path, weights="int8")
    token_ids = torch.randint(0, 320, (1, 30), generator=torch.Generator().manual_seed(2))
    exact, first, second = (our_logits(item, token_ids) for item in (model, rounded, again))
    assert torch.equal(first, second)
    assert 0 < (first - exact).abs().mean() < 0.02 * exact.std()
    assert path.stat().st_size < 0.3 * (tmp_path / "model.safetensors").stat().st_size


def test_int4_is_farther_than_int8_but_correlates(tmp_path: Path) -> None:
    model = make_model()
    save_model(model, tmp_path)
    token_ids = torch.randint(0, 320, (1, 30), generator=torch.Generator().manual_seed(2))
    exact = our_logits(model, token_ids)
    errors = {
        weights: (our_logits(load_model(tmp_path, weights=weights), token_ids) - exact).abs().mean()
        for weights in ("int8", "int4")
    }
    assert errors["int8"] < errors["int4"] < 0.3 * exact.std()


def test_parameter_count_is_the_models() -> None:
    for changes in ({}, {"tie_word_embeddings": False, "attention_bias": True}, {"architecture": "Glm4ForCausalLM"}):
        model = make_model(**changes)
        assert model.config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ],
)
def test_a_config_that_is_not_ours_is_refused_by_name(tmp_path: Path, change: dict, message: str) -> None:
    import json

    save_model(make_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_bad_weight_files_are_refused(tmp_path: Path) -> None:
    save_model(make_model(), tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot read"):
        load_model(tmp_path)
    lying = (2**60).to_bytes(8, "little") + whole[8:]
    weights.write_bytes(lying)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_model(tmp_path)
    save_file({"model.norm.weight": torch.ones(96)}, weights)
    with pytest.raises(CheckpointError, match="is missing"):
        load_model(tmp_path)
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="pickle"):
        load_model(tmp_path)


def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(make_model(), folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        load_model(folder)
