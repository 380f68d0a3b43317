# SPDX-License-Identifier: Apache-2.0
"""The torch backend gives transformers' logits, however the tokens are cut into steps and mixed in batches."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from open_autoglm.engine.backends import load_backend
from open_autoglm.engine.backends.torch_backend import TorchBackend
from open_autoglm.engine.batch import build_batch
from open_autoglm.engine.block_pool import BlockPool
from open_autoglm.engine.engine import Engine, complete_all
from open_autoglm.engine.request import Request, SamplingParams
from open_autoglm.engine.scheduler import Chunk, Sequence
from open_autoglm.errors import EngineError
from open_autoglm.models.checkpoint import save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from tests.engine.tiny_bundle import make_config, make_model

VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": False, "attention_bias": True, "partial_rotary_factor": 1.0},
    {"num_key_value_heads": 4, "attention_bias": True},
    {"num_key_value_heads": 1, "partial_rotary_factor": 1.0},
    {"architecture": "Glm4ForCausalLM", "num_key_value_heads": 1},
    {"architecture": "Glm4ForCausalLM", "tie_word_embeddings": False, "attention_bias": True},
]


def reference_model(config: ModelConfig, model: GlmForCausalLM) -> Any:
    theirs = transformers.AutoConfig.for_model(**config.to_hf())
    reference = transformers.AutoModelForCausalLM.from_config(theirs).eval()
    reference.load_state_dict(model.state_dict())
    return reference


def reference_logits(reference: Any, token_ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return reference(torch.tensor([token_ids])).logits[0].numpy()


@pytest.mark.parametrize("variant", VARIANTS, ids=[",".join(map(str, item.values())) or "plain" for item in VARIANTS])
def test_random_mixtures_of_prefill_chunks_and_decodes_match_transformers(variant: dict[str, Any]) -> None:
    config = make_config(**variant)
    model = make_model(config, seed=3)
    reference = reference_model(config, model)
    generator = np.random.default_rng(5)
    rows = [generator.integers(0, config.vocab_size, length).tolist() for length in (1, 3, 9, 40, 41, 90, 130)]
    expected = [reference_logits(reference, row) for row in rows]
    backend = TorchBackend(model)
    pool = BlockPool(200, 4)
    backend.allocate(pool.num_blocks, pool.block_size)
    pool.allocate(7)  # so that no sequence begins at block 0
    sequences = [Sequence(str(index), row) for index, row in enumerate(rows)]
    for sequence in sequences:
        sequence.blocks = pool.allocate(pool.blocks_for(len(sequence.token_ids)))
        generator.shuffle(sequence.blocks)
    num_checked = 0
    while left := [sequence for sequence in sequences if sequence.num_pending]:
        chosen = [sequence for sequence in left if generator.random() < 0.7] or left[:1]
        chunks = []
        for sequence in chosen:
            length = int(generator.choice([1, 1, 1, 5, 30]))
            length = min(length, sequence.num_pending)
            chunks.append(Chunk(sequence, sequence.num_computed, length, is_last=True))
        logits = backend.step(build_batch(chunks, pool.block_size))
        for row, chunk in zip(logits, chunks, strict=True):
            end = chunk.start + chunk.length
            theirs = expected[int(chunk.sequence.id)][end - 1]
            np.testing.assert_allclose(row, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
            chunk.sequence.num_computed = end
            num_checked += 1
    assert num_checked > 40


@pytest.mark.parametrize("architecture", ["GlmForCausalLM", "Glm4ForCausalLM"])
def test_greedy_answers_are_those_of_transformers(architecture: str) -> None:
    config = make_config(architecture=architecture)
    model = make_model(config)
    reference = reference_model(config, model)
    generator = np.random.default_rng(1)
    prompts = [generator.integers(0, config.vocab_size, length).tolist() for length in (2, 7, 19, 33, 64, 5)]
    engine = Engine(TorchBackend(model), max_batch_tokens=24, max_sequences=4)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    completions = complete_all(
        engine, [Request(str(index), tuple(prompt), params) for index, prompt in enumerate(prompts)]
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        with torch.no_grad():
            theirs = reference.generate(
                torch.tensor([prompt]), max_new_tokens=100, min_new_tokens=100, do_sample=False, pad_token_id=0
            )
        assert list(completion.token_ids) == theirs[0, len(prompt) :].tolist()
        assert completion.finish_reason == "length"
        assert completion.text == ""


def test_chunks_without_outputs_give_none() -> None:
    config = make_config()
    backend = TorchBackend(make_model(config))
    backend.allocate(8, 16)
    sequence = Sequence("a", list(range(20)), blocks=[3, 5])
    logits = backend.step(build_batch([Chunk(sequence, 0, 10, is_last=False)], 16))
    assert logits.shape == (0, config.vocab_size)
    assert logits.dtype == np.float32


def test_a_model_in_training_comes_back_in_training() -> None:
    model = make_model(make_config(dropout=0.5)).train()
    backend = TorchBackend(model)
    assert not model.training
    backend.close()
    assert model.training


def test_unknown_backends_dtypes_and_threads_are_refused(tmp_path: Any) -> None:
    with pytest.raises(EngineError, match="unknown engine backend 'cuda'"):
        load_backend("cuda", tmp_path)
    with pytest.raises(EngineError, match="float16"):
        load_backend("torch", tmp_path, dtype="float16")
    with pytest.raises(EngineError, match="int8 weights are computed in float32"):
        load_backend("torch", tmp_path, dtype="bfloat16", weights="int8")
    with pytest.raises(EngineError, match="threads"):
        load_backend("torch", tmp_path, threads=0)


def test_without_pytorch_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from open_autoglm.engine.backends import load_backend\n"
        "load_backend('torch', Path('.'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "EngineError: the torch backend needs PyTorch" in done.stderr
    assert "pip install 'open-autoglm[build]'" in done.stderr


def test_dynamic_int8_is_what_torchao_makes_of_transformers_model(tmp_path: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = make_model(make_config(attention_bias=True), seed=3)
    save_model(model, tmp_path)
    reference = reference_model(model.config, model)
    quantize_(reference.model.layers, Int8DynamicActivationInt8WeightConfig())
    row = np.random.default_rng(5).integers(0, model.config.vocab_size, 40).tolist()
    exact, theirs = reference_logits(reference_model(model.config, model), row), reference_logits(reference, row)
    backend = load_backend("auto", tmp_path, weights="int8-dynamic")
    assert backend.name == "torch"
    backend.allocate(8, 16)
    sequence = Sequence("a", row, blocks=[3, 5, 1])
    first = backend.step(build_batch([Chunk(sequence, 0, 25, is_last=True)], 16))
    second = backend.step(build_batch([Chunk(sequence, 25, 15, is_last=True)], 16))
    ours = np.concatenate([first, second])
    # Sums in another order put a few activations on the other side of a step; other errors of rounding are the same.
    errors = (ours - exact[[24, 39]]).ravel(), (theirs - exact)[[24, 39]].ravel()
    assert np.abs(errors[0]).max() > 1e-3
    assert np.corrcoef(*errors)[0, 1] > 0.9
    with pytest.raises(EngineError, match="the native backend has no int8-dynamic weights"):
        load_backend("native", tmp_path, weights="int8-dynamic")
