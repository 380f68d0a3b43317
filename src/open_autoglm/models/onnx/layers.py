# SPDX-License-Identifier: Apache-2.0
"""The parts of a GLM's layer that see tokens as one flat row, whatever holds the KV cache: norms, projections, experts.

Source: transformers' Glm, Glm4 and Glm4Moe.
"""

from __future__ import annotations

from open_autoglm.models.config import ModelConfig
from open_autoglm.models.onnx.experts import write_experts
from open_autoglm.models.onnx.graph import GraphWriter
from open_autoglm.models.onnx.linear import LinearWriter
from open_autoglm.models.weights import WeightReader


class LayerWriter:
    """Writes what stands before and after attention. weights: as `LinearWriter` takes them."""

    def __init__(self, graph: GraphWriter, reader: WeightReader, weights: str) -> None:
        self._graph, self._reader = graph, reader
        self._config: ModelConfig = reader.config
        self.linear = LinearWriter(graph, reader, weights)

    def norm(self, hidden: str, module: str) -> str:
        """RMSNorm over the last axis."""
        weight = self._graph.weight(f"{module}.weight", self._reader.dense(f"{module}.weight").float32())
        return self._graph.node("RMSNormalization", hidden, weight, axis=-1, epsilon=self._config.rms_norm_eps)

    def query_key_value(self, layer: int, hidden: str) -> tuple[str, str, str]:
        """hidden: float[n, hidden_size]. Returns float[n, heads * head_dim] and twice float[n, kv_heads * head_dim].

        Queries and keys are not rotated yet.
        """
        graph, config, prefix = self._graph, self._config, f"model.layers.{layer}"
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        module = f"{prefix}.self_attn"
        normed = self.norm(hidden, f"{prefix}.input_layernorm")
        row = self.linear(normed, *(f"{module}.{name}" for name in ("q_proj", "k_proj", "v_proj")))
        sizes = graph.constant([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
        query, key, value = graph.node_with_outputs("Split", row, sizes, count=3, axis=1)
        if config.use_qk_norm:
            query = self._norm_heads(query, f"{module}.q_norm", heads)
            key = self._norm_heads(key, f"{module}.k_norm", kv_heads)
        return query, key, value

    def rotate(self, row: str, heads: int, cosines: str, sines: str) -> str:
        """row: float[batch, n, heads * head_dim]; cosines, sines: float[batch, n, rotary_dim / 2]."""
        return self._graph.node(
            "RotaryEmbedding",
            row,
            cosines,
            sines,
            num_heads=heads,
            rotary_embedding_dim=self._config.rotary_dim,
            interleaved=int(self._config.interleaved_rotary),
        )

    def rest_of_layer(self, layer: int, hidden: str, mixed: str) -> str:
        """hidden: float[n, hidden_size]; mixed: what attention made of the same tokens, float[n, heads * head_dim].

        Returns float[n, hidden_size].
        """
        graph, config, prefix = self._graph, self._config, f"model.layers.{layer}"
        added = self.linear(mixed, f"{prefix}.self_attn.o_proj")
        if config.sandwich_norm:
            added = self.norm(added, f"{prefix}.post_self_attn_layernorm")
        hidden = graph.node("Add", hidden, added)
        normed = self.norm(hidden, f"{prefix}.post_attention_layernorm")
        if config.is_moe_layer(layer):
            added = write_experts(graph, self.linear, self._reader, normed, f"{prefix}.mlp")
        elif config.is_mixture:
            added = self.linear.feed_forward(normed, f"{prefix}.mlp", "gate_proj", "up_proj")
        else:
            added = self.linear.feed_forward(normed, f"{prefix}.mlp", "gate_up_proj")
        if config.sandwich_norm:
            added = self.norm(added, f"{prefix}.post_mlp_layernorm")
        return graph.node("Add", hidden, added)

    def _norm_heads(self, row: str, module: str, heads: int) -> str:
        graph, head_dim = self._graph, self._config.head_dim
        normed = self.norm(graph.node("Reshape", row, graph.constant([-1, heads, head_dim])), module)
        return graph.node("Reshape", normed, graph.constant([-1, heads * head_dim]))
