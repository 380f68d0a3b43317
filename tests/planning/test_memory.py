# SPDX-License-Identifier: Apache-2.0
"""Estimated memory beside what the engine says of itself and what a process really takes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from open_autoglm.engine.backends import load_backend
from open_autoglm.models.checkpoint import save_model
from open_autoglm.models.config import ModelConfig
from open_autoglm.models.glm import GlmForCausalLM
from open_autoglm.models.size import kv_block_bytes, packed_bytes
from open_autoglm.planning.memory import estimate_memory, kv_blocks
from open_autoglm.planning.setup import Setup
from open_autoglm.targets import resolve_target

DENSE = ModelConfig(
    vocab_size=300,
    hidden_size=72,
    intermediate_size=144,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=20,
    attention_bias=True,
    tie_word_embeddings=False,
)
MIXTURE = ModelConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    architecture="Glm4MoeForCausalLM",
    use_qk_norm=True,
    num_experts=4,
    num_experts_per_tok=2,
    num_shared_experts=1,
    moe_intermediate_size=32,
    first_k_dense_replace=1,
)
# Wide keys in few layers, so that a large cache is filled with little computation.
WIDE = ModelConfig(
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=512,
)


def saved(config: ModelConfig, folder: Path) -> Path:
    model = GlmForCausalLM(config)
    model.initialize(torch.Generator().manual_seed(0))
    save_model(model, folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [DENSE, replace(DENSE, architecture="Glm4ForCausalLM", tie_word_embeddings=True, head_dim=16), MIXTURE],
    ids=["dense", "tied sandwich", "mixture"],
)
def test_weights_and_cache_take_what_the_engine_says(config: ModelConfig, tmp_path: Path) -> None:
    folder = saved(config, tmp_path)
    for weights in ("float32", "bfloat16", "int8", "int4"):
        dtype = "bfloat16" if weights == "bfloat16" else "float32"
        form = "float32" if weights == "bfloat16" else weights
        backend = load_backend("native", folder, weights=form, dtype=dtype, threads=1)
        size = backend.num_weight_bytes  # type: ignore[attr-defined]
        assert packed_bytes(config, weights) == pytest.approx(size, rel=0.01), weights
        backend.close()
    for kv_dtype in ("float32", "bfloat16", "int8"):
        backend = load_backend("native", folder, weights="int8", kv_dtype=kv_dtype, threads=1)
        assert kv_block_bytes(config, kv_dtype) == backend.bytes_per_block(16)
        backend.close()


CHILD = """
import json, sys
from open_autoglm import LLM
folder, blocks, sequences, length = sys.argv[1], *map(int, sys.argv[2:])
with LLM(folder, quantize="int8", kv_blocks=blocks, max_sequences=sequences, threads=2) as llm:
    prompts = [[2 + (row * length + place) % 1000 for place in range(length - 8)] for row in range(sequences)]
    done = llm.generate(prompt_token_ids=prompts, max_tokens=8, temperature=0.0, ignore_eos=True)
    assert all(len(one.token_ids) == 8 for one in done)
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps(int(status["VmRSS"].split()[0]) * 1024))
"""


MAPPED = """
import sys
from pathlib import Path
from open_autoglm.engine.backends import load_backend
def mapped():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["RssFile"].split()[0]) * 1024
folder = Path(sys.argv[1])
before = mapped()
backend = load_backend("native", folder, dtype="bfloat16", threads=1)
print(mapped() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_table_that_is_a_view_of_its_file_does_not_keep_the_whole_file_in_memory(tmp_path: Path) -> None:
    wide = replace(WIDE, vocab_size=8192, hidden_size=512, num_hidden_layers=6, tie_word_embeddings=False)
    model = GlmForCausalLM(wide)
    model.initialize(torch.Generator().manual_seed(0))
    save_model(model.to(torch.bfloat16), tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 30_000_000
    done = subprocess.run([sys.executable, "-c", MAPPED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The libraries that are loaded with the engine are files too.
    assert int(done.stdout) < size / 2


def test_activations_beside_bfloat16_take_what_the_instructions_need() -> None:
    setup = Setup("native", "bfloat16", "bfloat16", threads=2, sequences=8, context=1024)
    plain, rounded = (
        estimate_memory(WIDE, setup, replace(resolve_target("laptop"), features=features))
        for features in (("avx2",), ("avx2", "avx512_bf16"))
    )
    records = 2048 * (WIDE.num_attention_heads * WIDE.head_dim + WIDE.intermediate_size)
    assert plain.activations - rounded.activations == 2 * records


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_process_with_a_full_cache_takes_what_was_estimated(tmp_path: Path) -> None:
    setup = Setup("native", "int8", "bfloat16", threads=2, sequences=32, context=512)
    estimate = estimate_memory(WIDE, setup, server=False)
    assert estimate.kv_cache > 0.4 * estimate.total
    arguments = [str(saved(WIDE, tmp_path)), str(kv_blocks(setup)), str(setup.sequences), str(setup.context)]
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert estimate.total == pytest.approx(json.loads(done.stdout), rel=0.2)
