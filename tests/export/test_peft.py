# SPDX-License-Identifier: Apache-2.0
"""PEFT loads an exported adapter over the base and computes what the merged model computes."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from open_autoglm.errors import CheckpointError
from open_autoglm.export.huggingface import export_huggingface
from open_autoglm.export.peft import export_peft
from open_autoglm.export.source import open_source
from open_autoglm.models.adapter_files import write_adapter
from open_autoglm.models.adapter_settings import AdapterSettings
from open_autoglm.models.adapters import attach_adapter
from open_autoglm.models.checkpoint import load_model, save_model
from tests.export.samples import GLM4, byte_level_tokenizer, save_checkpoint

ROW = torch.arange(10, 60)[None]


def tuned_model(folder: Path) -> Path:
    """A base, and beside it what a build with LoRA leaves: the merged model, and the adapter in `train`."""
    save_checkpoint(folder / "base", "Glm4ForCausalLM", byte_level_tokenizer(GLM4))
    model = load_model(folder / "base")
    settings = AdapterSettings(rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
    generator = torch.Generator().manual_seed(0)
    attach_adapter(model, settings, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.2, generator=generator)
    write_adapter(model, settings, folder / "run" / "train" / "adapter", base=str(folder / "base"))
    merged = folder / "run" / "model"
    save_model(model, merged)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (merged / name).write_bytes((folder / "base" / name).read_bytes())
    return merged


def test_peft_computes_the_merged_model_from_the_adapter_and_the_base(tmp_path: Path) -> None:
    merged = open_source(tuned_model(tmp_path))
    report = export_peft(merged, tmp_path / "adapter")
    assert (report["kind"], report["base"]) == ("LORA", str(tmp_path / "base"))
    whole = tmp_path / "whole"
    export_huggingface(merged, whole)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        plain = base(ROW).logits
        expected = AutoModelForCausalLM.from_pretrained(whole).eval()(ROW).logits
        found = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(ROW).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((found - plain).abs().max()) > 0.1
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter").chat_template
    export_peft(merged, tmp_path / "adapter", base="someone/glm-4", force=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/glm-4"


def test_a_model_without_an_adapter_and_an_adapter_of_another_model_are_refused(tmp_path: Path) -> None:
    merged = tuned_model(tmp_path)
    with pytest.raises(CheckpointError, match="no adapter beside it"):
        export_peft(open_source(tmp_path / "base"), tmp_path / "never")
    weights = merged.parent / "train" / "adapter" / "adapter_model.safetensors"
    good = load_file(weights)
    first = next(name for name in good if "lora_A" in name)
    for changed, said in (
        ({**good, first: good[first][:, :-1].contiguous()}, "another model"),
        ({**good, first: good[first][:-1].contiguous()}, "do not fit together"),
        ({**good, "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}, "layers.9"),
    ):
        save_file(changed, weights)
        with pytest.raises(CheckpointError, match=said):
            export_peft(open_source(merged), tmp_path / "never")
    assert not (tmp_path / "never").exists()
