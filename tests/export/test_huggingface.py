# SPDX-License-Identifier: Apache-2.0
"""transformers loads an exported folder by itself: the same logits, the same token ids, the same prompts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.export.huggingface import export_huggingface, parse_size
from open_autoglm.export.sample_texts import sample_texts
from open_autoglm.export.source import open_source
from tests.export.samples import ENDS, GLM4, byte_level_tokenizer, save_checkpoint
from tests.models.random_checkpoints import save_int4_checkpoint

ROW = torch.tensor([list(np.random.default_rng(0).integers(10, 250, 40))])
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "你好, what's up?"},
    {"role": "assistant", "content": "Fine."},
    {"role": "user", "content": "再问"},
]


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ROW).logits.float()


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "ChatGLM"])
def test_transformers_computes_the_same_from_the_folder_alone(architecture: str, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", architecture)
    source = open_source(tmp_path / "model")
    seen: list[tuple[int, int]] = []
    report = export_huggingface(
        source, tmp_path / "out", max_shard_size="100KB", on_progress=lambda *args: seen.append(args)
    )
    out = tmp_path / "out"
    assert len(report["files"]) > 2
    assert seen[-1] == (report["tensors"],) * 2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    sizes = dict.fromkeys(report["files"], 0)
    for name in report["files"]:
        with safe_open(out / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                assert index["weight_map"][key] == name
                sizes[name] += file.get_tensor(key).nbytes
    assert all(size <= 131_072 for size in sizes.values())  # the embedding alone is larger than asked for
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-5, atol=1e-5)
    assert loaded.generation_config.eos_token_id == ENDS
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert source.tokenizer is not None
    for text in sample_texts():
        assert tokenizer(text, add_special_tokens=False).input_ids == source.tokenizer.encode(text).ids
    prompt = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\n你好, what's up?<|assistant|>\nFine.<|user|>\n再问<|assistant|>"
    )
    assert tokenizer.apply_chat_template(TALK, return_dict=False)[:3] == [1, 2, 3]
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") == 5


def test_weights_are_written_in_the_type_asked_for(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(GLM4)
    model = save_checkpoint(tmp_path / "model", "Glm4ForCausalLM", tokenizer, tie_word_embeddings=True)
    source = open_source(tmp_path / "model")
    for dtype in ("bfloat16", "float16"):
        report = export_huggingface(source, tmp_path / dtype, dtype=dtype)
        assert report["files"] == ["model.safetensors"]
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / dtype)
        assert loaded.dtype == getattr(torch, dtype)
        for name, tensor in loaded.state_dict().items():
            torch.testing.assert_close(tensor, model.state_dict()[name].to(tensor.dtype), rtol=0, atol=0, msg=name)
    again = export_huggingface(open_source(tmp_path / "bfloat16"), tmp_path / "again")
    assert again["dtype"] == "bfloat16"
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "bfloat16" / "model.safetensors"
    ).read_bytes()


def test_a_packed_checkpoint_comes_out_in_floating_point(tmp_path: Path) -> None:
    model = save_int4_checkpoint(tmp_path / "model", "GlmForCausalLM", "awq")
    report = export_huggingface(open_source(tmp_path / "model"), tmp_path / "out", dtype="float32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=1e-4, atol=1e-4)
    assert report["notes"] == ["the model has no tokenizer, so neither has the export"]


def test_older_folders_stay_unless_they_are_exports_and_it_is_asked_for(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", "GlmForCausalLM", byte_level_tokenizer(GLM4))
    source, out = open_source(tmp_path / "model"), tmp_path / "out"
    export_huggingface(source, out)
    before = (out / "model.safetensors").stat().st_ino
    with pytest.raises(ConfigurationError, match="--force"):
        export_huggingface(source, out)
    assert (out / "model.safetensors").stat().st_ino == before
    assert export_huggingface(source, out, dtype="bfloat16", force=True)["dtype"] == "bfloat16"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for place, said in (
        (tmp_path / "mine", "not an export"),
        (source.folder, "own folder"),
        (source.folder / "inner", "own folder"),
        (tmp_path, "holds the model"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            export_huggingface(source, place, force=True)
    weights = out / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        export_huggingface(open_source(out), tmp_path / "never")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine", "model", "out"]


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size(text) for text in ("5GB", "1.5 gb", "200MB", "3KB", "77")] == [
        5_000_000_000, 1_500_000_000, 200_000_000, 3000, 77,
    ]  # fmt: skip
    for text in ("", "GB", "0", "-1GB", "5TB", "5 G B"):
        with pytest.raises(ConfigurationError, match="--max-shard-size"):
            parse_size(text)
