# SPDX-License-Identifier: Apache-2.0
"""RoPE's frequencies are transformers', and dynamic ones depend on nothing but the sequence."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GlmConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from open_autoglm.errors import CheckpointError
from open_autoglm.models.config import ModelConfig, RopeScaling
from open_autoglm.models.glm import GlmForCausalLM, PackedSequences
from open_autoglm.models.rotary import rotary_frequencies

HEAD_DIMS = st.sampled_from([16, 64, 80, 128])
SCALINGS = st.one_of(
    st.fixed_dictionaries({"rope_type": st.sampled_from(["linear", "dynamic"]), "factor": st.floats(1.0, 40.0)}),
    st.fixed_dictionaries(
        {
            "rope_type": st.just("yarn"),
            "factor": st.floats(1.0, 40.0),
            "original_max_position_embeddings": st.integers(16, 100_000),
        },
        optional={
            "attention_factor": st.floats(0.1, 2.0),
            "beta_fast": st.floats(8.0, 64.0),
            "beta_slow": st.floats(0.5, 4.0),
            "truncate": st.booleans(),
            "mscale": st.floats(0.1, 2.0),
            "mscale_all_dim": st.floats(0.1, 2.0),
        },
    ),
)


def make_config(**changes: Any) -> ModelConfig:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    return ModelConfig(**{**sizes, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, **changes})


@settings(deadline=None, max_examples=150)
@given(
    scaling=SCALINGS,
    head_dim=HEAD_DIMS,
    partial=st.sampled_from([0.5, 1.0]),
    theta=st.sampled_from([100.0, 10000.0, 5e6]),
    longest=st.sampled_from([64, 2048, 131072]),
    length=st.integers(1, 1_000_000),
)
def test_frequencies_are_those_of_transformers(
    scaling: dict[str, Any], head_dim: int, partial: float, theta: float, longest: int, length: int
) -> None:
    rope = {**scaling, "rope_theta": theta, "partial_rotary_factor": partial}
    theirs = GlmConfig(head_dim=head_dim, max_position_embeddings=longest, rope_parameters=dict(rope))
    config = ModelConfig.from_hf({**theirs.to_dict(), "architectures": ["GlmForCausalLM"]})
    function = ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
    # Inside a model the length is a tensor, which makes transformers compute in float32.
    for given_length, asked in ((None, None), (length, torch.tensor(length))):
        expected, expected_scale = function(theirs, torch.device("cpu"), seq_len=asked)
        frequencies, scale = rotary_frequencies(config, given_length)
        assert frequencies.dtype == np.float32
        assert frequencies.shape == (config.rotary_dim // 2,)
        np.testing.assert_allclose(frequencies, expected.numpy(), rtol=5e-6)
        assert scale == pytest.approx(expected_scale, rel=1e-12)


def test_plain_frequencies_are_those_of_transformers() -> None:
    config = make_config(head_dim=128, rope_theta=10000.0)
    expected, _ = ROPE_INIT_FUNCTIONS["linear"](
        GlmConfig(rope_parameters={"rope_type": "linear", "factor": 1.0, "rope_theta": 10000.0}), torch.device("cpu")
    )
    frequencies, scale = rotary_frequencies(config, 10**6)
    np.testing.assert_allclose(frequencies, expected.numpy(), rtol=2e-6)
    assert scale == 1.0


def test_dynamic_frequencies_of_a_sequence_do_not_depend_on_its_neighbours() -> None:
    config = make_config(max_position_embeddings=8, rope_scaling=RopeScaling("dynamic", 2.0), num_hidden_layers=2)
    model = GlmForCausalLM(config).eval()
    model.initialize(torch.Generator().manual_seed(0))
    lengths = [30, 5, 9, 17]
    rows = [torch.randint(0, 64, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    with torch.no_grad():
        together = model(torch.cat(rows), PackedSequences(torch.tensor(lengths)))
        alone = torch.cat([model(row, PackedSequences(torch.tensor([len(row)]))) for row in rows])
        plain = GlmForCausalLM(replace(config, rope_scaling=None)).eval()
        plain.load_state_dict(model.state_dict())
        unscaled = plain(torch.cat(rows), PackedSequences(torch.tensor(lengths)))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    same = (together - unscaled).abs().amax(dim=1) < 1e-5
    assert same[30:35].all()  # five tokens are within the context of pretraining
    assert not same[3:30].any()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2048),
        ({"rope_scaling": RopeScaling("linear", 4.0)}, 8192),
        ({"rope_scaling": RopeScaling("dynamic", 1.5)}, 3072),
        ({"rope_scaling": RopeScaling("yarn", 4.0, original_max_position_embeddings=1024)}, 4096),
        ({"rope_scaling": RopeScaling("yarn", 4.0, original_max_position_embeddings=512)}, 2048),
    ],
)
def test_the_longest_context(changes: dict[str, Any], expected: int) -> None:
    assert make_config(**changes).max_context == expected


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, "'llama3' is not supported"),
        ({"rope_type": "longrope", "factor": 8.0}, "'longrope' is not supported"),
        ({"type": "linear"}, "needs the field 'factor'"),
        ({"type": "linear", "factor": 0.5}, "factor must be"),
        ({"type": "linear", "factor": "two"}, "wrong type"),
        ({"type": "dynamic", "factor": float("nan")}, "factor must be"),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": -5}, "original_max_position_embeddings"),
        ({"type": "yarn", "factor": 2.0, "beta_fast": -1}, "beta_fast"),
        ({"type": "yarn", "factor": 2.0, "attention_factor": "big"}, "attention_factor"),
        ({"type": "yarn", "factor": 2.0, "truncate": 3}, "truncate"),
        (["linear"], "must be an object"),
    ],
)
def test_a_scaling_that_is_not_ours_is_refused_by_name(scaling: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ModelConfig.from_hf({**make_config().to_hf(), "rope_scaling": scaling})


def test_the_older_spelling_of_a_scaling_is_read() -> None:
    written = {**make_config().to_hf(), "rope_theta": 77.0, "partial_rotary_factor": 1.0}
    del written["rope_parameters"]
    config = ModelConfig.from_hf({**written, "rope_scaling": {"type": "linear", "factor": 2}})
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert (config.rope_theta, config.partial_rotary_factor) == (77.0, 1.0)
