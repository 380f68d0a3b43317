# SPDX-License-Identifier: Apache-2.0
"""Adapters: PEFT loads ours and we load theirs, with the same logits; merging changes nothing; faults are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from open_autoglm.errors import CheckpointError
from open_autoglm.models.adapter_files import read_adapter, write_adapter
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapter_targets import find_targets
from open_autoglm.models.adapters import adapted_layers, attach_adapter, merge_adapter
from open_autoglm.models.checkpoint import load_model, save_model
from open_autoglm.models.frozen_linear import FrozenLinear, dense_weight
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.train.loss import batch_loss, lay_out_batch
from tests.models.random_checkpoints import (
    CLASSES,
    save_chatglm_checkpoint,
    save_int4_checkpoint,
    save_random_checkpoint,
)
from tests.train.small import make_examples

TOKENS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(2))
MOE = "Glm4MoeForCausalLM"


def our_logits(model: GlmForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.eval()(TOKENS, PackedSequences(torch.tensor([len(TOKENS)]))))


def assert_close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def assert_same(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to the rounding of float32 sums in another order."""
    assert float((ours - expected).norm() / expected.norm()) < 1e-5


def adapted(folder: Path, settings: AdapterSettings, *, bits: int | None = None) -> GlmForCausalLM:
    """A model with an adapter whose weights matter."""
    model = load_model(folder, frozen_bits=bits)
    attach_adapter(model, settings, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("architecture", list(CLASSES))
@pytest.mark.parametrize("targets", [("all",), ("q_proj", "v_proj"), ("layers.1.self_attn.o_proj",)])
def test_peft_computes_what_our_adapter_does(tmp_path: Path, architecture: str, targets: tuple[str, ...]) -> None:
    peft = pytest.importorskip("peft")
    save_random_checkpoint(tmp_path / "base", architecture, tie_word_embeddings=True)
    settings = AdapterSettings(rank=4, alpha=6.0, targets=targets)
    ours = adapted(tmp_path / "base", settings)
    write_adapter(ours, settings, tmp_path / "adapter", base="base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    layers = {name for name, _ in theirs.named_modules() if name.endswith(".lora_A")}
    assert len(layers) == len(adapted_layers(ours))
    with torch.no_grad():
        assert_close(our_logits(ours), theirs(TOKENS[None]).logits[0])


@pytest.mark.parametrize("architecture", list(CLASSES))
def test_we_compute_what_an_adapter_of_peft_does(tmp_path: Path, architecture: str) -> None:
    peft = pytest.importorskip("peft")
    save_random_checkpoint(tmp_path / "base", architecture)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    targets = ["q_proj", "o_proj", *(["down_proj"] if architecture != MOE else [])]
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, use_rslora=True,
        rank_pattern={"o_proj": 6}, alpha_pattern={"o_proj": 3}, init_lora_weights=False,
    )  # fmt: skip
    theirs = peft.get_peft_model(base, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(tmp_path / "base")
    plain = our_logits(ours)
    read_adapter(ours, tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(TOKENS[None]).logits[0]
    assert_close(our_logits(ours), expected)
    assert float((plain - expected).abs().max()) > 0.1
    merged = theirs.merge_and_unload()
    save_model(ours, tmp_path / "merged")
    again = load_file(tmp_path / "merged" / "model.safetensors")
    weight = merged.get_parameter("model.layers.1.self_attn.o_proj.weight").detach()
    assert_close(again["model.layers.1.self_attn.o_proj.weight"], weight, 1e-5)


def test_soft_prompts_are_those_of_peft_both_ways(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    save_random_checkpoint(tmp_path / "base", "Glm4ForCausalLM")
    settings = AdapterSettings(kind="soft_prompt", prompt_length=5)
    ours = adapted(tmp_path / "base", settings)
    write_adapter(ours, settings, tmp_path / "adapter", base="base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = theirs(TOKENS[None]).logits[0, 5:]
    assert_close(our_logits(ours), expected)
    theirs.save_pretrained(tmp_path / "back")
    again = load_model(tmp_path / "base")
    read_adapter(again, tmp_path / "back")
    assert_close(our_logits(again), expected)
    with pytest.raises(CheckpointError, match="soft prompt"):
        save_model(ours, tmp_path / "merged")


def test_a_soft_prompt_is_before_each_of_several_sequences(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path, "GlmForCausalLM")
    model = adapted(tmp_path, AdapterSettings(kind="soft_prompt", prompt_length=3))
    lengths = torch.tensor([4, 9, 1])
    with torch.no_grad():
        together = model.eval()(TOKENS[:14], PackedSequences(lengths))
        alone = [model(part, PackedSequences(torch.tensor([len(part)]))) for part in TOKENS[:14].split([4, 9, 1])]
    assert_close(together, torch.cat(alone), 1e-5)


@pytest.mark.parametrize("architecture", list(CLASSES))
@pytest.mark.parametrize(("kind", "bits"), [("lora", 4), ("qlora", 8), ("qlora", 4)])
def test_merging_changes_no_logits(tmp_path: Path, architecture: str, kind: str, bits: int) -> None:
    save_random_checkpoint(tmp_path / "base", architecture)
    settings = AdapterSettings(kind=kind, rank=3, base_bits=bits)
    model = adapted(tmp_path / "base", settings, bits=bits if kind == "qlora" else None)
    expected = our_logits(model)
    save_model(model, tmp_path / "merged")
    assert_same(our_logits(load_model(tmp_path / "merged")), expected)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        assert_close(theirs(TOKENS[None]).logits[0], expected)
    assert_same(our_logits(merge_adapter(model)), expected)
    assert not adapted_layers(model)
    assert not any(isinstance(module, FrozenLinear) for module in model.modules())


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_base_takes_little_memory_and_passes_exact_gradients(tmp_path: Path, bits: int) -> None:
    """The gradients are those of a float model that holds the rounded numbers."""
    save_random_checkpoint(tmp_path, "GlmForCausalLM")
    settings = AdapterSettings(kind="qlora", rank=3, base_bits=bits)
    ours = adapted(tmp_path, settings, bits=bits)
    reference = adapted(tmp_path, AdapterSettings(kind="lora", rank=3))
    rounded = {name: module for name, module in ours.named_modules() if isinstance(module, FrozenLinear)}
    assert len(rounded) == 3 * 6
    stored = sum(buffer.numel() * buffer.element_size() for module in rounded.values() for buffer in module.buffers())
    assert stored < 4 * sum(dense_weight(module.rounded).numel() for module in rounded.values()) * (bits + 1.5) / 32
    for name, module in rounded.items():
        layer = reference.get_submodule(name)
        weight = dense_weight(module.rounded)
        assert 0 < float((weight - layer.weight).norm() / layer.weight.norm()) < (0.02 if bits == 8 else 0.2)
        layer.weight.data.copy_(weight)
    batch = lay_out_batch(make_examples(5), np.arange(5), torch.device("cpu"))
    for model in (ours, reference):
        batch_loss(model.train(), batch).backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters() if parameter.requires_grad}
    assert len(gradients) == 2 * 3 * 6
    for name, gradient in gradients.items():
        found = ours.get_parameter(name).grad
        assert gradient is not None and found is not None
        assert_close(found, gradient, 1e-5)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_lora_on_a_checkpoint_that_another_tool_packed(tmp_path: Path, method: str) -> None:
    changes = {"desc_act": True} if method == "gptq" else {}
    save_int4_checkpoint(tmp_path / "base", "GlmForCausalLM", method, num_hidden_layers=2, **changes)
    model = adapted(tmp_path / "base", AdapterSettings(rank=3))
    batch = lay_out_batch(make_examples(4), np.arange(4), torch.device("cpu"))
    batch_loss(model.train(), batch).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    expected = our_logits(model)
    save_model(model, tmp_path / "merged")
    assert_same(our_logits(load_model(tmp_path / "merged")), expected)


def test_a_new_adapter_changes_nothing(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path, MOE)
    model = load_model(tmp_path)
    expected = our_logits(model)
    names = attach_adapter(model, AdapterSettings(), torch.Generator().manual_seed(0))
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert len(names) == 3 * 4
    assert torch.equal(our_logits(model), expected)
    with pytest.raises(CheckpointError, match="already"):
        attach_adapter(model, AdapterSettings(), torch.Generator())


def test_an_adapter_for_the_layout_of_chatglm_repositories(tmp_path: Path) -> None:
    """LLaMA-Factory's `query_key_value` on glm-4-9b: one first matrix for all three, the second cut into rows."""
    save_chatglm_checkpoint(tmp_path / "base", num_hidden_layers=2)
    model = load_model(tmp_path / "base")
    generator = torch.Generator().manual_seed(3)
    tensors, expected = {}, load_model(tmp_path / "base")
    for layer in range(2):
        key = f"base_model.model.transformer.encoder.layers.{layer}.self_attention.query_key_value"
        narrow, wide = torch.randn(3, 64, generator=generator), torch.randn(128, 3, generator=generator)
        tensors |= {f"{key}.lora_A.weight": narrow, f"{key}.lora_B.weight": wide}
        attention = expected.model.decoder_layers()[layer].self_attn
        with torch.no_grad():
            for projection, rows in zip(
                (attention.q_proj, attention.k_proj, attention.v_proj),
                (wide * 2 @ narrow).split([64, 32, 32]),
                strict=True,
            ):
                projection.weight += rows
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["query_key_value"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    read_adapter(model, tmp_path / "adapter")
    assert len(adapted_layers(model)) == 6
    assert_close(our_logits(model), our_logits(expected), 1e-5)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("q_porj", "did you mean 'q_proj'"),
        ("query_key_value", "here it is q_proj, k_proj and v_proj"),
        ("layers.9.self_attn.q_proj", "no linear layer"),
        ("lm_head", "known are: .*gate_up_proj"),
    ],
)
def test_wrong_targets_are_named_with_what_was_meant(tmp_path: Path, target: str, said: str) -> None:
    save_random_checkpoint(tmp_path, "GlmForCausalLM")
    with pytest.raises(CheckpointError, match=said):
        find_targets(load_model(tmp_path).config, ("q_proj", target))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_alpha": "many"}, "lora_alpha"),
    ],
)
def test_adapters_that_we_cannot_compute_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    save_random_checkpoint(tmp_path / "base", "GlmForCausalLM", num_hidden_layers=1)
    settings = AdapterSettings(rank=2)
    write_adapter(adapted(tmp_path / "base", settings), settings, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=said):
        read_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")


def test_damaged_foreign_and_pickled_adapters_are_named(tmp_path: Path) -> None:
    save_random_checkpoint(tmp_path / "base", "GlmForCausalLM", num_hidden_layers=1)
    save_random_checkpoint(tmp_path / "other", "GlmForCausalLM", num_hidden_layers=1, intermediate_size=128)
    settings = AdapterSettings(rank=2)
    write_adapter(adapted(tmp_path / "base", settings), settings, tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"(gate_up|down)_proj .*is it another base"):
        read_adapter(load_model(tmp_path / "other"), tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": torch.zeros(2, 64)}, path)
    with pytest.raises(CheckpointError, match=r"lm_head\.lora_A\.weight belongs to no layer"):
        read_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="not a usable adapter"):
        read_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")
    path.rename(path.with_name("adapter_model.bin"))
    with pytest.raises(CheckpointError, match="pickle"):
        read_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")
