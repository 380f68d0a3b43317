# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that transformers writes give transformers' logits and answers, for every class and setting we read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from open_autoglm.engine.backends.torch_backend import TorchBackend
from open_autoglm.engine.batch import Batch
from open_autoglm.models.checkpoint import load_config, load_model, save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from tests.models.random_checkpoints import (
    CLASSES,
    ROPE_SCALINGS,
    save_chatglm_checkpoint,
    save_int4_checkpoint,
    save_random_checkpoint,
)
from tests.thoroughness import times

MOE = "Glm4MoeForCausalLM"
TOKENS = times(90, 200)
"""Of a greedy answer: more than fit the shortest context, so that positions that grow with it have to."""
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {"tie_word_embeddings": True, "attention_bias": False}) for name in CLASSES],
    *[(name, {"attention_bias": True, "num_key_value_heads": 1, "dtype": "bfloat16"}) for name in CLASSES],
    *[(name, {"num_attention_heads": 8, "num_key_value_heads": 1, "dtype": "float16"}) for name in CLASSES],
    *[(name, {"num_key_value_heads": 4, "rope_parameters": {"partial_rotary_factor": 1.0}}) for name in CLASSES],
    *[(name, {"rope_parameters": {"rope_theta": 500.0}, "max_shard_size": "40KB"}) for name in CLASSES],
    (MOE, {"use_qk_norm": True, "stacked_experts": True, "max_shard_size": "40KB", "dtype": "bfloat16"}),
    (MOE, {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 2, "norm_topk_prob": False}),
    (MOE, {"n_group": 2, "topk_group": 1, "n_shared_experts": 2, "routed_scaling_factor": 0.7}),
    (MOE, {"first_k_dense_replace": 0, "use_qk_norm": True, "num_experts_per_tok": 1}),
    (MOE, {"first_k_dense_replace": 9}),
]


def describe(variant: object) -> str:
    if isinstance(variant, dict):
        return ",".join(f"{key}={value}" for key, value in variant.items() if not isinstance(value, dict)) or "default"
    return str(variant).removesuffix("ForCausalLM")


def our_logits(model: GlmForCausalLM, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        hidden = model(token_ids, PackedSequences(torch.tensor([len(token_ids)])))
        return model.logits(hidden)


def assert_same_logits(folder: Path, theirs: PreTrainedModel, length: int = 60) -> None:
    token_ids = torch.randint(0, theirs.config.vocab_size, (length,), generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        expected = theirs(token_ids[None]).logits[0]
    ours = our_logits(load_model(folder), token_ids)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS, ids=describe)
def test_logits_are_those_of_transformers(tmp_path: Path, architecture: str, changes: dict[str, Any]) -> None:
    theirs = save_random_checkpoint(tmp_path, architecture, seed=1, **changes)
    assert (tmp_path / "model.safetensors.index.json").exists() is ("max_shard_size" in changes)
    assert_same_logits(tmp_path, theirs)
    config = load_config(tmp_path)
    assert config.num_parameters() == sum(parameter.numel() for parameter in theirs.parameters())
    assert ModelConfig.from_hf(config.to_hf()) == config == ModelConfig.from_dict(config.to_dict())


@pytest.mark.parametrize("architecture", list(CLASSES), ids=describe)
@pytest.mark.parametrize("scaling", list(ROPE_SCALINGS))
def test_logits_beyond_the_context_of_pretraining(tmp_path: Path, architecture: str, scaling: str) -> None:
    rope = dict(ROPE_SCALINGS[scaling])
    theirs = save_random_checkpoint(tmp_path, architecture, seed=2, max_position_embeddings=64, rope_parameters=rope)
    for length in (40, 64, 65, 150):
        # A new one: theirs remembers the longest sequence that it has seen.
        assert_same_logits(tmp_path, AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), length)
    config = load_config(tmp_path)
    assert config.rope_scaling is not None
    assert ModelConfig.from_hf(config.to_hf()) == config == ModelConfig.from_dict(config.to_dict())
    assert theirs.config.rope_parameters["rope_type"] == config.rope_scaling.rope_type


@pytest.mark.parametrize("architecture", list(CLASSES), ids=describe)
def test_transformers_reads_what_we_write(tmp_path: Path, architecture: str) -> None:
    changes = {"use_qk_norm": True, "n_group": 2, "topk_group": 1} if architecture == MOE else {}
    save_random_checkpoint(tmp_path / "theirs", architecture, rope_parameters=dict(ROPE_SCALINGS["yarn"]), **changes)
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    assert type(again).__name__ == architecture
    assert_same_logits(tmp_path / "theirs", again)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": False, "num_key_value_heads": 1},
        {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e6}},
    ],
    ids=describe,
)
def test_the_layout_of_chatglm_repositories(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_same_logits(tmp_path, save_chatglm_checkpoint(tmp_path, seed=3, **changes))


INT4 = [
    ("awq", {}),
    ("awq", {"group_size": 16, "kept": ("layers.0.", "down_proj")}),
    ("awq", {"group_size": -1}),
    ("gptq", {"symmetric": True, "empty_biases": True}),
    ("gptq", {"checkpoint_format": "gptq_v2", "group_size": 16}),
    ("gptq", {"desc_act": True, "kept": ("o_proj",)}),
    ("gptq", {"desc_act": True, "symmetric": True, "checkpoint_format": "gptq_v2"}),
    ("gptq", {"group_size": -1}),
]


@pytest.mark.parametrize("architecture", list(CLASSES), ids=describe)
@pytest.mark.parametrize(("method", "changes"), INT4, ids=describe)
def test_int4_checkpoints_give_the_logits_of_the_numbers_they_mean(
    tmp_path: Path, architecture: str, method: str, changes: dict[str, Any]
) -> None:
    theirs = save_int4_checkpoint(tmp_path, architecture, method, seed=4, num_hidden_layers=2, **changes)
    assert_same_logits(tmp_path, theirs)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_experts_can_be_rounded_too(tmp_path: Path, weights: str) -> None:
    save_random_checkpoint(tmp_path, MOE, seed=5)
    token_ids = torch.arange(60)
    exact, rounded = (our_logits(load_model(tmp_path, weights=kind), token_ids) for kind in ("float32", weights))
    assert 0 < (rounded - exact).abs().mean() < (0.05 if weights == "int8" else 0.5) * exact.std()


@pytest.mark.parametrize("quantised", [False, True])
def test_in_bfloat16_what_chooses_experts_and_scales_codes_stays_exact(tmp_path: Path, quantised: bool) -> None:
    """Chosen to matter: a bias of 1000 and a little, which bfloat16 rounds to one number for all experts."""
    if quantised:
        save_int4_checkpoint(tmp_path, MOE, "awq", seed=7)
    else:
        save_random_checkpoint(tmp_path, MOE, seed=7)
    model = load_model(tmp_path)
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    for router in routers:
        router.e_score_correction_bias += 1000.0
    token_ids = torch.arange(60)
    exact = our_logits(model, token_ids)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if "bias" in name or "scales" in name}
    rounded = our_logits(model.to(torch.bfloat16), token_ids).float()
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert len(buffers) == len(routers) + quantised * (3 * 4 + 3 + 2 * 3 * 9)
    for name, buffer in buffers.items():
        assert torch.equal(model.get_buffer(name), buffer), name
    assert (rounded - exact).abs().mean() < 0.1 * exact.std()


def greedy_answer(model: GlmForCausalLM, prompt: list[int], count: int, chunk: int) -> list[int]:
    """Tokens of the torch backend, one sequence, its prompt computed in chunks."""
    backend, token_ids, block_size = TorchBackend(model), list(prompt), 16
    num_blocks = -(-(len(prompt) + count) // block_size)
    backend.allocate(num_blocks, block_size)
    done = 0
    while len(token_ids) < len(prompt) + count:
        end = min(len(token_ids), done + chunk)
        positions = np.arange(done, end)
        logits = backend.step(
            Batch(
                token_ids=np.array(token_ids[done:end]),
                positions=positions,
                slot_mapping=positions,
                offsets=np.array([0, end - done]),
                context_lengths=np.array([end]),
                sequence_lengths=np.array([len(token_ids)]),
                block_tables=np.arange(num_blocks)[None],
                output_indices=np.array([end - done - 1]),
                block_size=block_size,
            )
        )
        done = end
        if done == len(token_ids):
            token_ids.append(int(logits[0].argmax()))
    return token_ids[len(prompt) :]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("GlmForCausalLM", {"attention_bias": True}),
        ("Glm4ForCausalLM", {"dtype": "bfloat16"}),
        ("Glm4ForCausalLM", {"max_position_embeddings": 90, "rope_parameters": dict(ROPE_SCALINGS["dynamic"])}),
        (MOE, {"use_qk_norm": True}),
        (MOE, {"max_position_embeddings": 40, "rope_parameters": dict(ROPE_SCALINGS["dynamic"])}),
        ("GlmForCausalLM", {"max_position_embeddings": 64, "rope_parameters": dict(ROPE_SCALINGS["yarn"])}),
    ],
    ids=describe,
)
def test_greedy_answers_are_those_of_transformers(tmp_path: Path, architecture: str, changes: dict[str, Any]) -> None:
    theirs = save_random_checkpoint(tmp_path, architecture, seed=6, eos_token_id=None, **changes)
    prompt = torch.randint(0, 256, (1, 50), generator=torch.Generator().manual_seed(1))
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(prompt, max_new_tokens=TOKENS, do_sample=False)[0, 50:].tolist()
    assert len(expected) == TOKENS
    assert len(set(expected)) > TOKENS // 10  # not a loop of a few tokens, which anything would match
    model = load_model(tmp_path)
    for chunk in (512, 13):
        assert greedy_answer(model, prompt[0].tolist(), TOKENS, chunk) == expected
