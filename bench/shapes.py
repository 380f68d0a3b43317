# SPDX-License-Identifier: Apache-2.0
"""The GLM shapes that benchmarks run, and what one step of them has to read and compute.

Weights are random: speed depends on the shape alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BITS_PER_WEIGHT = {"int4": 4.5, "int8": 8.0, "bfloat16": 16.0, "float32": 32.0}
"""What a weight takes in memory. int4 counts a 16-bit scale for each group of 32; engines differ a little."""


@dataclass(frozen=True)
class Shape:
    """A `GlmForCausalLM` with biases in attention and an output matrix of its own."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int = 65536

    @property
    def decoder_weights(self) -> int:
        """Weights of the layers' matrices, each used once per token."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def output_weights(self) -> int:
        """Weights of the output matrix, used once per token whose logits are wanted."""
        return self.vocabulary * self.hidden

    def weight_bytes(self, weights: str) -> float:
        """Bytes of all matrices that one step reads; the embedding's few rows are left out."""
        return (self.decoder_weights + self.output_weights) * BITS_PER_WEIGHT[weights] / 8

    def operations(self, tokens: int, outputs: int) -> float:
        """Operations of the matrix products of one step, a multiply-add being two. Attention is left out."""
        return 2.0 * (tokens * self.decoder_weights + outputs * self.output_weights)

    def kv_bytes_per_token(self, bits: float) -> float:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bits / 8

    def huggingface_config(self) -> dict[str, Any]:
        """The `config.json` that describes this shape, for transformers 4 and 5 alike."""
        return {
            "architectures": ["GlmForCausalLM"],
            "model_type": "glm",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.max_positions,
            "hidden_act": "silu",
            "attention_bias": True,
            "attention_dropout": 0.0,
            "rms_norm_eps": 1e-5,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": False,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    # What a user downloads: GLM-Edge-1.5B.
    "edge-1.5b": Shape(2048, 28, 6144, 16, 4, 128, 59264),
    # What the builder finds for a narrow task: 19 million parameters.
    "built-19m": Shape(384, 8, 1024, 6, 2, 64, 8192),
    # Between the two, larger than a cache: efficiencies of `planning` are taken on it.
    "edge-150m": Shape(1024, 12, 3072, 16, 4, 64, 16384),
    # A smaller one that no efficiency was taken on, to check plans with.
    "edge-75m": Shape(768, 10, 2304, 12, 2, 64, 16384),
    # For trying the benchmarks themselves in seconds; its figures mean nothing.
    "tiny": Shape(64, 2, 128, 4, 2, 16, 512),
}
