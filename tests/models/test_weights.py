# SPDX-License-Identifier: Apache-2.0
"""The reader gives the numbers that were written, under transformers' names, from every layout and without PyTorch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from open_autoglm.errors import CheckpointError
from open_autoglm.models.checkpoint import load_model, save_int8, save_model
from open_autoglm.models.packed_layouts import PackedLayout, unpack_layer
from open_autoglm.models.weights import DenseWeight, Int4Weight, Int8Weight, open_weights
from tests.models.random_checkpoints import (
    CLASSES,
    pack_awq,
    pack_gptq,
    save_chatglm_checkpoint,
    save_int4_checkpoint,
    save_random_checkpoint,
)

MOE = "Glm4MoeForCausalLM"


def change_file(path: Path, change: Any) -> None:
    """Rewrite a safetensors file; change: a function that alters the dictionary of its tensors."""
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path, MOE, dtype="bfloat16")
    code = (
        "import sys; from pathlib import Path; from open_autoglm.models.rotary import rotary_frequencies\n"
        "from open_autoglm.models.weights import open_weights\n"
        "with open_weights(Path(sys.argv[1])) as reader:\n"
        "    total = sum(reader.dense(name).float32().size for name in reader.names())\n"
        "    rotary_frequencies(reader.config)\n"
        "print(total, *(name for name in ('torch', 'transformers', 'safetensors') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open_weights(tmp_path) as reader:
        router_biases = 2 * reader.config.num_experts  # counted as buffers, not as parameters
        assert done.stdout.split() == [str(reader.config.num_parameters() + router_biases)]


def test_loading_a_model_does_not_load_the_compiler(tmp_path: Path) -> None:
    """PyTorch would load it to fill layers that have no memory: two seconds for each process."""
    save_random_checkpoint(tmp_path, MOE, dtype="float32")
    code = (
        "import sys; from pathlib import Path; from open_autoglm.models.checkpoint import load_model\n"
        "load_model(Path(sys.argv[1])); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("architecture", list(CLASSES))
def test_each_tensor_is_the_one_that_was_written(tmp_path: Path, architecture: str, dtype: str) -> None:
    theirs = save_random_checkpoint(tmp_path, architecture, dtype=dtype, attention_bias=True, max_shard_size="50KB")
    expected = theirs.state_dict()
    for name in [name for name in expected if ".experts." in name and "shared" not in name]:
        for expert, matrix in enumerate(expected.pop(name)):
            prefix = f"{name.rpartition('.')[0]}.{expert}"
            if name.endswith("down_proj"):
                expected[f"{prefix}.down_proj.weight"] = matrix
            else:
                expected[f"{prefix}.gate_proj.weight"], expected[f"{prefix}.up_proj.weight"] = matrix.chunk(2)
    with open_weights(tmp_path) as reader:
        assert set(reader.names()) == set(expected)
        weights = {name: reader.dense(name) for name in reader.names()}
    for name, weight in weights.items():
        assert reader.has(name)
        assert weight.is_bfloat16 is (dtype == "bfloat16")
        assert weight.values.dtype == {"float32": "f4", "float16": "f2", "bfloat16": "u2"}[dtype]
        assert not weight.values.flags.writeable
        assert weight.shape == expected[name].shape
        np.testing.assert_array_equal(weight.float32(), expected[name].numpy(), err_msg=name)
    assert not reader.has("model.layers.0.self_attn.o_proj.bias")
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.9\.mlp"):
        reader.linear("model.layers.9.mlp.down_proj")


def test_experts_read_the_same_apart_and_stacked(tmp_path: Path) -> None:
    for name, stacked in (("apart", False), ("stacked", True)):
        save_random_checkpoint(tmp_path / name, MOE, stacked_experts=stacked, dtype="float16")
    stored = load_file(tmp_path / "stacked" / "model.safetensors")
    assert "model.layers.1.mlp.experts.gate_up_proj" in stored
    with open_weights(tmp_path / "apart") as apart, open_weights(tmp_path / "stacked") as stacked:
        assert apart.names() == stacked.names()
        for name in apart.names():
            np.testing.assert_array_equal(apart.dense(name).values, stacked.dense(name).values)


def test_a_tied_output_matrix_is_the_embedding(tmp_path: Path) -> None:
    theirs = save_random_checkpoint(tmp_path, "GlmForCausalLM", tie_word_embeddings=True)
    # Some tools write the tied matrix as well.
    change_file(
        tmp_path / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(256, 64)})
    )
    with open_weights(tmp_path) as reader:
        assert "lm_head.weight" not in reader.names()
        assert reader.has("lm_head.weight")
        for weight in (reader.linear("lm_head"), reader.dense("lm_head.weight"), reader.linear("model.embed_tokens")):
            assert isinstance(weight, DenseWeight)
            np.testing.assert_array_equal(weight.values, theirs.model.embed_tokens.weight.detach().numpy())


@pytest.mark.parametrize("tied", [True, False])
def test_the_int8_file_of_a_bundle(tmp_path: Path, tied: bool) -> None:
    save_random_checkpoint(tmp_path, "Glm4ForCausalLM", tie_word_embeddings=tied, attention_bias=True)
    with open_weights(tmp_path, int8=True) as reader:
        assert not reader.is_int8  # nothing rounded yet: the weights as they are
    save_int8(load_model(tmp_path, weights="int8"), tmp_path)
    with open_weights(tmp_path) as exact, open_weights(tmp_path, int8=True) as reader:
        assert reader.is_int8
        assert reader.names() == exact.names()
        for name in [
            "model.embed_tokens",
            "lm_head",
            "model.layers.2.mlp.gate_up_proj",
            "model.layers.0.self_attn.v_proj",
        ]:
            weight, reference = reader.linear(name), exact.linear(name).float32()
            assert isinstance(weight, Int8Weight)
            assert (weight.values.dtype, weight.scale.dtype) == (np.int8, np.float32)
            error = np.abs(weight.float32() - reference)
            assert (error <= 0.5001 * np.abs(reference).max(axis=1, keepdims=True) / 127).all()
        bias = "model.layers.1.self_attn.k_proj.bias"
        np.testing.assert_array_equal(reader.dense(bias).values, exact.dense(bias).values)
        with pytest.raises(CheckpointError, match="not a floating-point type"):
            reader.dense("model.embed_tokens.weight")
    change_file(
        tmp_path / "int8.safetensors", lambda tensors: tensors.update({"model.embed_tokens.scale": torch.ones(3)})
    )
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.scale is F32\[3\]"):
        open_weights(tmp_path, int8=True)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_int4_layers_are_given_as_codes(tmp_path: Path, method: str) -> None:
    theirs = save_int4_checkpoint(tmp_path, MOE, method, kept=("q_proj",), desc_act=method == "gptq", group_size=16)
    with open_weights(tmp_path) as reader:
        assert reader.layout is not None
        for name, shape in (
            ("model.layers.0.mlp.gate_proj", (96, 64)),
            ("model.layers.1.self_attn.o_proj", (64, 64)),
            ("model.layers.2.mlp.shared_experts.down_proj", (64, 32)),
        ):
            weight = reader.linear(name)
            assert isinstance(weight, Int4Weight)
            assert weight.values.dtype == weight.zeros.dtype == np.uint8
            assert weight.scales.dtype == np.float32
            assert weight.values.shape == weight.shape == shape
            assert weight.scales.shape == weight.zeros.shape == (shape[0], shape[1] // 16)
            assert weight.values.max() <= 15
            assert (weight.column_order is None) is (method == "awq")
            np.testing.assert_array_equal(weight.float32(), theirs.get_submodule(name).weight.detach().numpy())
            with pytest.raises(CheckpointError, match="in 4 bits"):
                reader.dense(f"{name}.weight")
        for name in ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate", "lm_head", "model.embed_tokens"):
            assert isinstance(reader.linear(name), DenseWeight)


def test_int4_layers_in_the_layout_of_chatglm(tmp_path: Path) -> None:
    """Its fused matrix is packed whole; query, key and value are rows of it."""
    save_chatglm_checkpoint(tmp_path)
    generator = np.random.default_rng(0)
    codes, zeros = generator.integers(0, 16, (128, 64)), generator.integers(0, 16, (128, 2))
    scales = generator.uniform(0.01, 0.1, (128, 2)).astype(np.float16)
    module = "transformer.encoder.layers.1.self_attention.query_key_value"
    packed = {"qweight": pack_awq(codes.T), "qzeros": pack_awq(zeros.T)}

    def pack(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{module}.weight"]
        tensors |= {f"{module}.{part}": torch.from_numpy(value.view(np.int32)) for part, value in packed.items()}
        tensors[f"{module}.scales"] = torch.from_numpy(np.ascontiguousarray(scales.T))

    change_file(tmp_path / "model.safetensors", pack)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "w_bit": 4, "q_group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    meant = (codes - np.repeat(zeros, 32, axis=1)) * np.repeat(scales.astype(np.float32), 32, axis=1)
    with open_weights(tmp_path) as reader:
        rows = [reader.linear(f"model.layers.1.self_attn.{letter}_proj").float32() for letter in "qkv"]
        assert [len(part) for part in rows] == [64, 32, 32]
        np.testing.assert_array_equal(np.concatenate(rows), meant.astype(np.float32))


@settings(deadline=None, max_examples=60)
@given(
    outputs=st.integers(1, 6).map(lambda count: 8 * count),
    groups=st.integers(1, 4),
    group_size=st.sampled_from([8, 16, 32]),
    form=st.sampled_from(["awq", "gptq", "gptq_v2"]),
    seed=st.integers(0, 1000),
)
def test_unpacking_undoes_packing(outputs: int, groups: int, group_size: int, form: str, seed: int) -> None:
    """Zeros of 0 included, at which the first GPTQ format borrows from the next number of the word."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 16, (outputs, groups * group_size))
    zeros = generator.integers(0, 16, (outputs, groups))
    scales = generator.normal(size=(groups, outputs)).astype(np.float32)
    if form == "awq":
        layout, parts = PackedLayout("awq", group_size), {"qweight": pack_awq(codes.T), "qzeros": pack_awq(zeros.T)}
    else:
        offset = int(form == "gptq")
        words = pack_gptq(zeros).T - np.uint32(0x11111111 * offset)
        layout, parts = PackedLayout("gptq", group_size, offset), {"qweight": pack_gptq(codes.T), "qzeros": words}
    arrays = {name: np.ascontiguousarray(words).view(np.int32) for name, words in parts.items()}
    weight = unpack_layer(layout, {**arrays, "scales": scales}, codes.shape, "layer")
    np.testing.assert_array_equal(weight.values, codes)
    np.testing.assert_array_equal(weight.zeros, zeros)
    np.testing.assert_array_equal(weight.scales, scales.T)


def edit_g_idx(group: int) -> Any:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.down_proj.g_idx"][5] = group

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.0.mlp.down_proj.scales"), r"down_proj\.scales is missing"),
        (edit_g_idx(2), "does not split the inputs into groups of 32"),
        (edit_g_idx(-1), "does not split the inputs into groups of 32"),
        (edit_g_idx(2**31 - 1), "does not split the inputs into groups of 32"),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.down_proj.g_idx": torch.arange(95, dtype=torch.int32)}),
            "g_idx is int32",
        ),
        (
            lambda tensors: tensors.update(
                {"model.layers.0.mlp.down_proj.qzeros": torch.zeros(3, 9, dtype=torch.int32)}
            ),
            r"qzeros is int32\[3, 9\], expected int32\[3, 8\]",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.down_proj.qweight": torch.zeros(12, 64)}),
            "qweight is float32",
        ),
        (lambda tensors: tensors["model.layers.0.mlp.down_proj.scales"].fill_(float("nan")), "not finite"),
        (
            lambda tensors: tensors.update({"model.layers.0.mlp.down_proj.bias": torch.ones(64).half()}),
            r"down_proj\.bias is not part of this architecture",
        ),
    ],
)
def test_int4_parts_that_do_not_fit_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    save_int4_checkpoint(tmp_path, "GlmForCausalLM", "gptq", num_hidden_layers=1)
    load_model(tmp_path)
    change_file(tmp_path / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_packed_model_is_not_written_again_as_if_it_were_exact(tmp_path: Path) -> None:
    save_int4_checkpoint(tmp_path, "GlmForCausalLM", "awq", num_hidden_layers=1)
    for write in (save_model, save_int8):
        with pytest.raises(CheckpointError, match="cannot be written again"):
            write(load_model(tmp_path, weights="int8"), tmp_path / "again")


def test_layers_that_predict_further_tokens_are_skipped(tmp_path: Path) -> None:
    theirs = save_random_checkpoint(tmp_path, MOE)
    extra = {
        "model.layers.3.eh_proj.weight": torch.zeros(64, 128),
        "model.layers.3.mlp.experts.0.up_proj.weight": torch.zeros(3),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    }
    change_file(tmp_path / "model.safetensors", lambda tensors: tensors.update(extra))
    with open_weights(tmp_path) as reader:
        assert reader.config.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())
        assert not any("layers.3" in name for name in reader.names())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)}), r"model\.extra\.weight is not part"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}),
            r"model\.norm\.weight is F32\[65\], config\.json asks for F32 or F16 or BF16 \[64\]",
        ),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(64).long()}), r"is I64\[64\]"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(64).double()}), r"is F64\[64\]"),
    ],
)
def test_files_that_are_not_the_models_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    save_random_checkpoint(tmp_path, "GlmForCausalLM")
    change_file(tmp_path / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        open_weights(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path, "GlmForCausalLM", max_shard_size="80KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    first = next(iter(load_file(shards[0]).items()))
    change_file(shards[1], lambda tensors: tensors.update([first]))
    with pytest.raises(CheckpointError, match=rf"{first[0]} is in {shards[0].name} too"):
        open_weights(tmp_path)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[1].name} is missing; download"):
        open_weights(tmp_path)


def test_a_config_that_claims_a_trillion_layers_is_refused_at_once(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path, MOE)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"num_hidden_layers": 1 << 40}, {"n_routed_experts": 1 << 39}):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=r"is missing|asks for"):
            open_weights(tmp_path)
