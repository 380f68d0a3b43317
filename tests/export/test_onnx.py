# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime computes from an exported folder what transformers computes: prompts, decoding, batches with padding."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer, DynamicCache, PreTrainedModel

from open_autoglm.errors import CheckpointError, ConfigurationError
from open_autoglm.export.onnx import export_onnx
from open_autoglm.export.source import open_source
from open_autoglm.models.onnx.linear import as_int4, as_int8
from open_autoglm.models.weights import DenseWeight
from tests.export.samples import GLM4, VOCABULARY, byte_level_tokenizer, save_checkpoint

LENGTHS = (11, 4, 8)


def padded_batch(size: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int64[size, longest + steps] and their mask, prompts of different lengths padded on the left."""
    longest, generator = max(LENGTHS[:size]), np.random.default_rng(size)
    token_ids = generator.integers(10, VOCABULARY, (size, longest + steps))
    mask = np.ones_like(token_ids)
    for row, length in enumerate(LENGTHS[:size]):
        mask[row, : longest - length] = 0
        token_ids[row, : longest - length] = 0
    return token_ids, mask


def positions_of(mask: np.ndarray) -> np.ndarray:
    return np.maximum(mask.cumsum(axis=1) - 1, 0)


def run_onnx(folder: Path, token_ids: np.ndarray, mask: np.ndarray, pieces: list[int]) -> np.ndarray:
    """The logits of all tokens, given in pieces of these lengths with the cache of the pieces before."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    inputs = {item.name: item for item in session.get_inputs()}
    outputs = [item.name for item in session.get_outputs()]
    cache = {
        name: np.zeros((len(token_ids), item.shape[1], 0, item.shape[3]), np.float32)
        for name, item in inputs.items()
        if name.startswith("past_key_values.")
    }
    found, start = [], 0
    for length in pieces:
        end = start + length
        given = {
            "input_ids": token_ids[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions_of(mask)[:, start:end],
        }
        results = dict(zip(outputs, session.run(None, given | cache), strict=True))
        found.append(results["logits"])
        cache = {name: results[name.replace("past_key_values", "present")] for name in cache}
        start = end
    return np.concatenate(found, axis=1)


def run_transformers(model: PreTrainedModel, token_ids: np.ndarray, mask: np.ndarray, pieces: list[int]) -> np.ndarray:
    found, start, cache = [], 0, DynamicCache()
    for length in pieces:
        end = start + length
        with torch.no_grad():
            result: Any = model(
                input_ids=torch.from_numpy(token_ids[:, start:end]),
                attention_mask=torch.from_numpy(mask[:, :end]),
                position_ids=torch.from_numpy(positions_of(mask)[:, start:end]),
                past_key_values=cache,
                use_cache=True,
            )
        found.append(result.logits.numpy())
        start = end
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "ChatGLM"])
def test_prompts_and_decoding_are_those_of_transformers(architecture: str, tmp_path: Path) -> None:
    changed = {"use_qk_norm": True} if architecture == "Glm4MoeForCausalLM" else {}
    model = save_checkpoint(tmp_path / "model", architecture, **changed)
    report = export_onnx(open_source(tmp_path / "model"), tmp_path / "out")
    onnx.checker.check_model(str(tmp_path / "out" / "model.onnx"), full_check=True)
    assert report["opset"] == 23
    for size in (1, 3):
        token_ids, mask = padded_batch(size, 3)
        pieces = [token_ids.shape[1] - 3, 1, 1, 1]
        expected = run_transformers(model, token_ids, mask, pieces)
        found = run_onnx(tmp_path / "out", token_ids, mask, pieces)
        real = mask.astype(bool)
        np.testing.assert_allclose(found[real], expected[real], rtol=2e-4, atol=2e-4, err_msg=str(size))
        whole = run_onnx(tmp_path / "out", token_ids, mask, [pieces[0] - 2, 5])
        np.testing.assert_allclose(whole[real], expected[real], rtol=2e-4, atol=2e-4, err_msg=str(size))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
        {
            "rope_type": "yarn",
            "factor": 2.5,
            "original_max_position_embeddings": 100,
            "attention_factor": 1.3,
            "rope_theta": 1e4,
        },
        {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0},
    ],
    ids=["linear", "yarn", "whole"],
)
def test_rotations_of_all_kinds_are_those_of_transformers(rope: dict[str, Any], tmp_path: Path) -> None:
    model = save_checkpoint(
        tmp_path / "model", "GlmForCausalLM", byte_level_tokenizer(GLM4), rope_parameters=rope, tie_word_embeddings=True
    )
    export_onnx(open_source(tmp_path / "model"), tmp_path / "out")
    token_ids, mask = padded_batch(3, 2)
    pieces = [token_ids.shape[1] - 2, 1, 1]
    expected, real = run_transformers(model, token_ids, mask, pieces), mask.astype(bool)
    found = run_onnx(tmp_path / "out", token_ids, mask, pieces)
    np.testing.assert_allclose(found[real], expected[real], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
def test_int4_computes_with_the_rounded_weights_and_standard_files_lie_beside(
    architecture: str, tmp_path: Path
) -> None:
    model = save_checkpoint(tmp_path / "model", architecture)
    report = export_onnx(open_source(tmp_path / "model"), tmp_path / "out", precision="int4")
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulNBits") == 2 * 4 + 1  # q, k and v are one product
    assert "Gemm" not in operators
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() == 2:
                weight = DenseWeight(tensor.numpy().copy())
                edge = "embed" in name or "lm_head" in name
                meant = as_int8(weight).float32() if edge else as_int4(weight).float32()[:, : tensor.shape[1]]
                tensor.copy_(torch.from_numpy(meant))
    for size in (1, 3):
        token_ids, mask = padded_batch(size, 2)
        pieces = [token_ids.shape[1] - 2, 1, 1]
        expected, real = run_transformers(model, token_ids, mask, pieces), mask.astype(bool)
        found = run_onnx(tmp_path / "out", token_ids, mask, pieces)
        # ONNX Runtime rounds activations to 8 bits as well.
        error = np.linalg.norm(found[real] - expected[real]) / np.linalg.norm(expected[real])
        assert error < 0.03, error
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names >= {"model.onnx", "model.onnx.data", "config.json", "generation_config.json", "tokenizer.json"}
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert report["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


def test_inputs_and_outputs_have_the_usual_names_and_free_sizes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", "GlmForCausalLM", byte_level_tokenizer(GLM4))
    export_onnx(open_source(tmp_path / "model"), tmp_path / "out")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    past = ["batch_size", 2, "past_sequence_length", 16]
    assert {item.name: item.shape for item in session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        **{f"past_key_values.{layer}.{part}": past for layer in range(2) for part in ("key", "value")},
    }
    assert [item.name for item in session.get_outputs()] == [
        "logits", "present.0.key", "present.0.value", "present.1.key", "present.1.value",
    ]  # fmt: skip


def test_what_the_graph_cannot_compute_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    save_checkpoint(tmp_path / "model", "GlmForCausalLM", byte_level_tokenizer(GLM4), rope_parameters=rope)
    source = open_source(tmp_path / "model")
    with pytest.raises(CheckpointError, match="'dynamic'"):
        export_onnx(source, tmp_path / "out")
    with pytest.raises(ConfigurationError, match="float32, int4"):
        export_onnx(source, tmp_path / "out", precision="int3")
    assert [item.name for item in tmp_path.iterdir()] == ["model"]
