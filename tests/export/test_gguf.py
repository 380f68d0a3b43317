# SPDX-License-Identifier: Apache-2.0
"""A GGUF file holds the model's numbers under llama.cpp's names, and llama.cpp computes the model's logits with it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel

from open_autoglm.chat.template import CHAT_TEMPLATE
from open_autoglm.errors import CheckpointError, ConfigurationError, StorageError
from open_autoglm.export.gguf import export_gguf
from open_autoglm.export.gguf_pre_tokenizers import KNOWN
from open_autoglm.export.huggingface import export_huggingface
from open_autoglm.export.sample_texts import sample_texts
from open_autoglm.export.source import open_source
from tests.chat.test_tokenizer_files import write_tiktoken
from tests.export.samples import ENDS, GLM4, VOCABULARY, WORDS, byte_level_tokenizer, save_checkpoint

ARCHITECTURES = {"GlmForCausalLM": "chatglm", "Glm4ForCausalLM": "glm4", "ChatGLM": "chatglm"}
RUNNER = Path(__file__).with_name("run_llama_cpp.py")
ROW = list(np.random.default_rng(0).integers(10, 500, 60))
SMALLEST = {"f32": 0.0, "bf16": 2.0**-8, "f16": 2.0**-11, "q8_0": 1 / 254, "q4_0": 1 / 8 / 2}
"""How far a number may be from the model's, as a share of the largest of its block (or of itself)."""


def llama_cpp_python() -> str | None:
    given = os.environ.get("OPEN_AUTOGLM_BENCH_LLAMA_CPP_PYTHON")
    return given or (sys.executable if importlib.util.find_spec("llama_cpp") else None)


needs_llama_cpp = pytest.mark.skipif(
    llama_cpp_python() is None,
    reason="llama-cpp-python is neither installed nor in the interpreter of OPEN_AUTOGLM_BENCH_LLAMA_CPP_PYTHON",
)


def run_llama_cpp(model: Path, rows: list[list[int]], texts: list[str]) -> tuple[list[np.ndarray], dict[str, Any]]:
    logits_file = model.with_suffix(".npz")
    asked = {
        "model": str(model),
        "logits_file": str(logits_file),
        "token_ids": [[int(item) for item in row] for row in rows],
        "texts": texts,
    }
    done = subprocess.run(
        [str(llama_cpp_python()), str(RUNNER)], input=json.dumps(asked), text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = np.load(logits_file)
    return [found[f"row_{number}"] for number in range(len(rows))], json.loads(done.stdout)


def logits_of(model: PreTrainedModel, row: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([[int(item) for item in row]])).logits[0].numpy()


def fields_of(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, PreTrainedModel]]:
    made = {}
    for architecture in ARCHITECTURES:
        folder = tmp_path_factory.mktemp(architecture)
        made[architecture] = (
            folder,
            save_checkpoint(folder, architecture, attention_bias=architecture != "Glm4ForCausalLM"),
        )
    return made


def expected_tensors(model: PreTrainedModel, architecture: str) -> dict[str, torch.Tensor]:
    """llama.cpp's names, written out by hand from its loader, and what transformers has there."""
    ours = model.state_dict()
    found = {
        "token_embd.weight": ours["model.embed_tokens.weight"],
        "output_norm.weight": ours["model.norm.weight"],
        "output.weight": ours["lm_head.weight"],
    }
    modules = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "ffn_down": "mlp.down_proj",
    }
    if architecture == "glm4":
        modules |= {"post_attention_norm": "post_self_attn_layernorm", "post_ffw_norm": "post_mlp_layernorm"}
    for layer in range(model.config.num_hidden_layers):
        for theirs, module in modules.items():
            for part in ("weight", "bias"):
                name = f"model.layers.{layer}.{module}.{part}"
                if name in ours:
                    found[f"blk.{layer}.{theirs}.{part}"] = ours[name]
    return found


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("kind", list(SMALLEST))
def test_the_library_reads_back_every_tensor_and_what_describes_them(
    checkpoints: dict[str, tuple[Path, PreTrainedModel]], architecture: str, kind: str, tmp_path: Path
) -> None:
    folder, model = checkpoints[architecture]
    out, seen = tmp_path / "model.gguf", []
    source = open_source(folder)
    report = export_gguf(source, out, kind=kind, on_progress=lambda done, total: seen.append((done, total)))
    reader, arch = GGUFReader(out), ARCHITECTURES[architecture]
    expected = expected_tensors(model, arch)
    stored = {item.name: item for item in reader.tensors}
    assert set(stored) == set(expected)
    assert seen[-1] == (len(expected), len(expected))
    for name, wanted in expected.items():
        values = quants.dequantize(stored[name].data, stored[name].tensor_type)
        exact = wanted.numpy()
        assert values.shape == exact.shape, name
        is_matrix = exact.ndim == 2
        said = (kind if is_matrix else "f32").upper()
        if kind == "q4_0" and name in ("token_embd.weight", "output.weight"):
            said = "Q8_0"
        assert stored[name].tensor_type is GGMLQuantizationType[said], name
        largest = np.abs(exact)
        if said.startswith("Q"):
            blocks = largest.reshape(exact.shape[0], -1, 32).max(axis=2)
            largest = np.repeat(blocks, 32, axis=1)
        # A block's scale is float16, hence a little more; Q4_0 has one code less on one side, hence twice as much.
        allowed = SMALLEST[said.lower()] * (2.02 if said == "Q4_0" else 1.15) * largest
        smallest = 2.0**-25 if said == "F16" else 0.0  # half a step among the smallest float16
        assert (np.abs(values - exact) <= allowed + smallest).all(), name
    config, fields = model.config, fields_of(reader)
    assert fields["general.architecture"] == arch
    for name, wanted in {
        "context_length": 256,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim // 2,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "vocab_size": VOCABULARY,
    }.items():
        assert fields[f"{arch}.{name}"] == wanted, name
    assert fields[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(config.rms_norm_eps)
    assert (fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.add_bos_token"]) == ("chatglm-bpe", False)
    ends = [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert ends == ENDS
    assert fields["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert source.tokenizer is not None
    known = source.tokenizer.get_vocab(with_added_tokens=True)
    assert all(fields["tokenizer.ggml.tokens"][token_id] == token for token, token_id in known.items())
    assert report["tokenizer"]["exact"]
    assert report["bytes"] == out.stat().st_size
    assert report["notes"] == []


@needs_llama_cpp
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_llama_cpp_gives_the_same_logits_and_token_ids(
    checkpoints: dict[str, tuple[Path, PreTrainedModel]], architecture: str, tmp_path: Path
) -> None:
    folder, model = checkpoints[architecture]
    source = open_source(folder)
    assert source.tokenizer is not None
    exact = logits_of(model, ROW)
    for kind, allowed in {"f32": 1e-5, "f16": 2e-3, "q8_0": 0.03, "q4_0": 0.35}.items():
        out = tmp_path / f"{kind}.gguf"
        export_gguf(source, out, kind=kind)
        texts = sample_texts() if kind == "f32" else []
        (found, single), said = run_llama_cpp(out, [ROW, ROW[:1]], texts)
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert error < allowed, (kind, error)
        assert np.linalg.norm(single[0] - found[0]) <= 1e-4 * np.linalg.norm(found[0])
        assert said["ends"] == ENDS
        assert said["template"] == CHAT_TEMPLATE
        if texts:
            assert len(texts) >= 200
            assert said["ids"] == [source.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


@needs_llama_cpp
def test_stretched_and_whole_rotation_and_a_tied_embedding_are_the_same_in_llama_cpp(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(GLM4)
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "rope_theta": 5000.0}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("GlmForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}}),
        ("GlmForCausalLM", {"rope_parameters": yarn}),
        (
            "GlmForCausalLM",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}},
        ),
        ("Glm4ForCausalLM", {"tie_word_embeddings": True, "head_dim": 24}),
    ]
    for number, (architecture, changed) in enumerate(cases):
        folder = tmp_path / str(number)
        model = save_checkpoint(folder, architecture, tokenizer, **changed)
        export_gguf(open_source(folder), folder.with_suffix(".gguf"), kind="f32")
        (found,), _ = run_llama_cpp(folder.with_suffix(".gguf"), [ROW], [])
        np.testing.assert_allclose(found, logits_of(model, ROW), rtol=2e-4, atol=2e-4, err_msg=str(changed))


@needs_llama_cpp
def test_every_name_of_a_pre_tokenizer_means_to_llama_cpp_what_it_means_here(tmp_path: Path) -> None:
    """Else a choice made by imitation would be worth nothing."""
    texts = sample_texts()
    for known in KNOWN:
        tokenizer = byte_level_tokenizer(*known.expressions, added=('", "', '"}', '": "'))
        said = json.loads(tokenizer.to_str())
        said["model"]["ignore_merges"] = known.whole_words
        tokenizer = Tokenizer.from_str(json.dumps(said))
        folder = tmp_path / known.name
        save_checkpoint(folder, "GlmForCausalLM", tokenizer, num_hidden_layers=1)
        report = export_gguf(open_source(folder), folder.with_suffix(".gguf"))
        assert (report["tokenizer"]["pre_tokenizer"], report["tokenizer"]["exact"]) == (known.name, True)
        _, found = run_llama_cpp(folder.with_suffix(".gguf"), [], texts)
        assert found["ids"] == [tokenizer.encode(text).ids for text in texts], known.name


@needs_llama_cpp
def test_a_tokenizer_in_tiktoken_s_file_goes_out_too(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "out.gguf"
    save_checkpoint(folder, "ChatGLM")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    write_tiktoken(folder / "tokenizer.model")
    source = open_source(folder)
    report = export_gguf(source, out)
    assert report["tokenizer"]["exact"]
    assert report["notes"] == ["the model has no chat template, so the file has none"]
    _, found = run_llama_cpp(out, [], sample_texts())
    assert source.tokenizer is not None
    assert found["ids"] == [source.tokenizer.encode(text).ids for text in sample_texts()]
    export_huggingface(source, tmp_path / "hf")
    read = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert [read(text, add_special_tokens=False).input_ids for text in sample_texts()] == found["ids"]


def test_a_tokenizer_that_llama_cpp_has_no_name_for_is_refused_by_name_or_taken_on_request(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", "GlmForCausalLM", byte_level_tokenizer(WORDS, added=('{"intent": "', '"}')))
    source = open_source(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"\\p\{N\}\{1,3\}.*not for '.*--tokenizer nearest.*--tokenizer none"):
        export_gguf(source, tmp_path / "out.gguf")
    assert not list(tmp_path.glob("*.gguf*"))
    report = export_gguf(source, tmp_path / "nearest.gguf", tokenizer="nearest")
    assert 0 < report["tokenizer"]["same_token_ids"] < report["tokenizer"]["sample_texts"]
    assert "for one" in report["notes"][0]
    report = export_gguf(source, tmp_path / "none.gguf", tokenizer="none")
    fields = fields_of(GGUFReader(tmp_path / "none.gguf"))
    assert report["tokenizer"] is None
    assert fields["tokenizer.ggml.model"] == "none"
    assert "tokenizer.ggml.tokens" not in fields


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(GLM4)
    out = tmp_path / "out.gguf"
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "attention_factor": 1.3}
    dynamic = {"rope_type": "dynamic", "factor": 2.0}
    for name, architecture, changed, said in (
        ("moe", "Glm4MoeForCausalLM", {}, "Glm4MoeForCausalLM is not exported to GGUF"),
        ("dynamic", "GlmForCausalLM", {"rope_parameters": {**dynamic, "rope_theta": 1e4}}, "'dynamic'"),
        ("yarn", "GlmForCausalLM", {"rope_parameters": {**yarn, "rope_theta": 1e4}}, "attention_factor"),
        ("wide", "GlmForCausalLM", {"head_dim": 24}, "4 x 24"),
        ("small", "GlmForCausalLM", {"vocab_size": 300}, "embedding has 300 rows"),
    ):
        save_checkpoint(tmp_path / name, architecture, tokenizer, **changed)
        with pytest.raises(CheckpointError, match=said):
            export_gguf(open_source(tmp_path / name), out)
    save_checkpoint(tmp_path / "good", "GlmForCausalLM", tokenizer)
    source = open_source(tmp_path / "good")
    weights = load_file(tmp_path / "good" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = 1e6
    save_file(weights, tmp_path / "good" / "model.safetensors", metadata={"format": "pt"})
    for kind in ("f16", "q8_0", "q4_0"):
        with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight.*too large for float16"):
            export_gguf(source, out, kind=kind)
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "good" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        export_gguf(open_source(tmp_path / "good"), out)


def test_an_older_file_stays_unless_asked_and_the_model_is_never_written_into(
    checkpoints: dict[str, tuple[Path, PreTrainedModel]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(checkpoints["GlmForCausalLM"][0])
    out = tmp_path / "out.gguf"
    out.write_text("mine")
    with pytest.raises(ConfigurationError, match="--force"):
        export_gguf(source, out)
    assert out.read_text() == "mine"
    export_gguf(source, out, force=True)
    assert GGUFReader(out).tensors
    for place, said in (
        (source.folder / "x.gguf", "own folder"), (source.folder, "own folder"), (tmp_path, "is a folder"),
    ):  # fmt: skip
        with pytest.raises(ConfigurationError, match=said):
            export_gguf(source, place, force=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000}))
    with pytest.raises(StorageError, match=r"0\.00 GB are free"):
        export_gguf(source, tmp_path / "new.gguf")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.gguf"]
