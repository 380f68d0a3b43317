# SPDX-License-Identifier: Apache-2.0
"""`config.json` of each family becomes one ModelConfig, and a file that lies is refused by the field at fault."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Glm4Config, Glm4MoeConfig, GlmConfig

from open_autoglm.errors import CheckpointError
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.model_folder import load_config

GLM = ModelConfig(64, 32, 48, 2, 4, 2, 16).to_hf()
MOE_SIZES: dict[str, Any] = {
    "architecture": "Glm4MoeForCausalLM",
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_shared_experts": 1,
    "moe_intermediate_size": 24,
}
MOE = ModelConfig(64, 32, 48, 2, 4, 2, 16, **MOE_SIZES).to_hf()
CHATGLM: dict[str, Any] = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMModel"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1.5625e-07,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_layers": 40,
    "original_rope": True,
    "padded_vocab_size": 151552,
    "post_layer_norm": True,
    "rmsnorm": True,
    "rope_ratio": 500,
    "seq_length": 131072,
    "tie_word_embeddings": False,
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("GlmForCausalLM", GlmConfig), ("Glm4ForCausalLM", Glm4Config), ("Glm4MoeForCausalLM", Glm4MoeConfig)],
)
def test_fields_that_a_file_leaves_out_are_transformers_defaults(name: str, theirs: type) -> None:
    sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    full = theirs(num_attention_heads=32).to_dict()
    sparse = ModelConfig.from_hf({"architectures": [name], **{size: full[size] for size in sizes}})
    written = ModelConfig.from_hf({"architectures": [name], **full})
    assert sparse.to_dict() | {"eos_token_ids": (), "pad_token_id": None} == written.to_dict() | {
        "eos_token_ids": (),
        "pad_token_id": None,
    }


def test_glm_4_9b_chat_reads_the_same_from_both_of_its_repositories() -> None:
    config = ModelConfig.from_hf(CHATGLM)
    converted = GlmConfig(num_hidden_layers=40, rope_parameters={"rope_theta": 5_000_000.0}).to_dict()
    assert config == ModelConfig.from_hf({**converted, "architectures": ["GlmForCausalLM"]})
    assert 9.3e9 < config.num_parameters() < 9.5e9
    without_class = {key: value for key, value in CHATGLM.items() if key not in ("architectures", "auto_map")}
    assert ModelConfig.from_hf(without_class) == config
    again = {**CHATGLM, "architectures": ["ChatGLMForConditionalGeneration"]}
    assert ModelConfig.from_hf(again) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rmsnorm": False}, "rmsnorm is False"),
        ({"post_layer_norm": False}, "post_layer_norm"),
        ({"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({"add_bias_linear": True}, "add_bias_linear"),
        ({"multi_query_attention": False}, "multi_query_attention"),
        ({"original_rope": False}, "original_rope"),
        ({"pre_seq_len": 128}, "pre_seq_len"),
        ({"quantization_bit": 4}, "quantization_bit"),
        ({"padded_vocab_size": "many"}, "vocab_size"),
        ({"rope_ratio": [1]}, "wrong type"),
        ({"architectures": ["ChatGLMForSequenceClassification"]}, "auto_map"),
    ],
)
def test_a_chatglm_that_computes_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_hf({**CHATGLM, **change})


def test_a_missing_field_is_named() -> None:
    for config in (GLM, MOE, CHATGLM):
        rest = {key: value for key, value in config.items() if key != "hidden_size"}
        with pytest.raises(CheckpointError, match="hidden_size"):
            ModelConfig.from_hf(rest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_routed_experts": 9, "n_group": 2}, "9 experts cannot be split into 2 groups"),
        ({"n_group": 8}, "groups of at least two"),
        ({"n_group": 2, "topk_group": 3}, "topk_group"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"n_group": 4, "topk_group": 1, "num_experts_per_tok": 3}, "2 experts of the chosen groups"),
        ({"n_shared_experts": 0}, "num_shared_experts"),
        ({"first_k_dense_replace": -1}, "first_k_dense_replace"),
        ({"routed_scaling_factor": 0}, "routed_scaling_factor"),
        ({"norm_topk_prob": 1}, "norm_topk_prob"),
        ({"use_qk_norm": "yes"}, "use_qk_norm"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"eos_token_id": ["</s>"]}, "token id"),
        ({"head_dim": 16, "rope_parameters": {"partial_rotary_factor": 1.5}}, "partial_rotary_factor"),
    ],
)
def test_sizes_that_do_not_fit_together_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_hf({**MOE, **change})


def test_layers_are_dense_first() -> None:
    config = ModelConfig(64, 32, 48, 4, 4, 2, 16, **MOE_SIZES, first_k_dense_replace=2)
    assert [config.is_moe_layer(layer) for layer in range(4)] == [False, False, True, True]
    assert not config.interleaved_rotary
    plain = ModelConfig(64, 32, 48, 4, 4, 2, 16)
    assert plain.interleaved_rotary
    assert not plain.is_moe_layer(3)
    with pytest.raises(CheckpointError, match="no experts"):
        ModelConfig(64, 32, 48, 4, 4, 2, 16, num_experts=4)


def test_the_ends_of_an_answer_come_from_generation_config_first(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GLM, "eos_token_id": 3}))
    assert load_config(tmp_path).eos_token_ids == (3,)
    for written, expected in ((None, (3,)), (5, (5,)), ([5, 6], (5, 6))):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": written}))
        assert load_config(tmp_path).eos_token_ids == expected
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"generation_config\.json must hold a JSON object"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "fp8"}, "'fp8'"),
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes'"),
        ({}, "None"),
        ([], "must be an object"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "gptq with bits 3"),
        ({"quant_method": "awq", "bits": 8, "group_size": 128}, "awq with bits 8"),
        ({"quant_method": "gptq", "bits": 4}, "'group_size' is missing"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "marlin"}, "'marlin'"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, "'gemv'"),
    ],
)
def test_other_quantised_checkpoints_are_refused_by_name(tmp_path: Path, settings: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**GLM, "quantization_config": settings}))
    with pytest.raises(CheckpointError, match=message):
        load_config(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([GLM, MOE, CHATGLM]), st.data())
def test_no_value_of_any_field_raises_anything_else(config: dict[str, Any], data: st.DataObject) -> None:
    fields = data.draw(st.lists(st.sampled_from([*config, "rope_scaling", "rope_theta"]), min_size=1, max_size=3))
    changed = {**config, **{field: data.draw(JSON_VALUES) for field in fields}}
    try:
        read = ModelConfig.from_hf(changed)
    except CheckpointError:
        return
    assert read.num_parameters() > 0
    assert ModelConfig.from_dict(json.loads(json.dumps(read.to_dict()))) == read
