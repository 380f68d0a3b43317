# SPDX-License-Identifier: Apache-2.0
"""The architecture of one GLM, readable from and writable as a Hugging Face `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from open_autoglm.errors import CheckpointError

ARCHITECTURES: Final[dict[str, str]] = {"GlmForCausalLM": "glm", "Glm4ForCausalLM": "glm4"}
"""Class name in `config.json` -> its `model_type`."""

_DEFAULT_EPSILON: Final[float] = 1.5625e-7
_DEFAULT_THETA: Final[float] = 10000.0
_DEFAULT_PARTIAL_ROTARY_FACTOR: Final[float] = 0.5


@dataclass(frozen=True)
class ModelConfig:
    """A GLM architecture.

    Names are those of transformers' `GlmConfig`/`Glm4Config`, so that `to_hf` is a plain dictionary.
    `partial_rotary_factor` is the share of each head that RoPE turns; `dropout` acts in training only and is
    never written.
    Raises CheckpointError when the sizes do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    architecture: str = "GlmForCausalLM"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = _DEFAULT_EPSILON
    rope_theta: float = _DEFAULT_THETA
    partial_rotary_factor: float = _DEFAULT_PARTIAL_ROTARY_FACTOR
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    eos_token_ids: tuple[int, ...] = field(default_factory=tuple)
    pad_token_id: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"unknown architecture '{self.architecture}'; known: {', '.join(sorted(ARCHITECTURES))}"
            )
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"model config: {name} must be a positive whole number, not {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"model config: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise CheckpointError(
                f"model config: head_dim {self.head_dim} x partial_rotary_factor {self.partial_rotary_factor} "
                "must be an even number of at least 2"
            )

    @property
    def rotary_dim(self) -> int:
        """How many leading numbers of each head RoPE turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def sandwich_norm(self) -> bool:
        """Glm4 normalises the output of each sub-layer once more before the residual addition."""
        return self.architecture == "Glm4ForCausalLM"

    def num_parameters(self) -> int:
        """Parameters held, embeddings counted once when tied."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_decoder_parameters()

    def num_decoder_parameters(self) -> int:
        """Parameters without the embeddings."""
        query = self.num_attention_heads * self.head_dim
        key_value = 2 * self.num_key_value_heads * self.head_dim
        bias = query + key_value if self.attention_bias else 0
        attention = self.hidden_size * (2 * query + key_value) + bias
        feed_forward = 3 * self.hidden_size * self.intermediate_size
        norms = self.hidden_size * (4 if self.sandwich_norm else 2)
        return self.num_hidden_layers * (attention + feed_forward + norms) + self.hidden_size

    def to_hf(self) -> dict[str, Any]:
        """The dictionary that transformers' `AutoConfig` reads."""
        return {
            "architectures": [self.architecture],
            "model_type": ARCHITECTURES[self.architecture],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "attention_bias": self.attention_bias,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": self.rope_theta,
                "partial_rotary_factor": self.partial_rotary_factor,
            },
            "tie_word_embeddings": self.tie_word_embeddings,
            "eos_token_id": list(self.eos_token_ids),
            "pad_token_id": self.pad_token_id,
            "initializer_range": 0.02,
            "use_cache": True,
            "dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> ModelConfig:
        """Read a `config.json`, of transformers 5 (`rope_parameters`) or older (`rope_theta` at the top).

        Raises CheckpointError for an architecture, activation or RoPE type that is not supported, a missing
        size, or `auto_map` (code of the model's repository is never run).
        """
        if config.get("auto_map"):
            raise CheckpointError(
                "config.json has 'auto_map': the checkpoint wants its own Python code run, which Open-AutoGLM never "
                "does; convert it to the transformers layout (a '-hf' version of the model) first"
            )
        named = config.get("architectures") or []
        architecture = named[0] if named else None
        if architecture is None:
            by_type = {model_type: name for name, model_type in ARCHITECTURES.items()}
            architecture = by_type.get(str(config.get("model_type")))
        if architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"config.json: architecture {architecture!r} is not supported; supported: "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"config.json: hidden_act {config['hidden_act']!r} is not supported, only 'silu'")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise CheckpointError(f"config.json: RoPE type {rope_type!r} is not supported yet, only 'default'")
        try:
            heads = int(config["num_attention_heads"])
            eos = config.get("eos_token_id")
            return cls(
                architecture=architecture,
                vocab_size=int(config["vocab_size"]),
                hidden_size=int(config["hidden_size"]),
                intermediate_size=int(config["intermediate_size"]),
                num_hidden_layers=int(config["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                max_position_embeddings=int(config.get("max_position_embeddings", 131072)),
                rms_norm_eps=float(config.get("rms_norm_eps", _DEFAULT_EPSILON)),
                rope_theta=float(rope.get("rope_theta", config.get("rope_theta", _DEFAULT_THETA))),
                partial_rotary_factor=float(
                    rope.get(
                        "partial_rotary_factor",
                        config.get("partial_rotary_factor", _DEFAULT_PARTIAL_ROTARY_FACTOR),
                    )
                ),
                attention_bias=bool(config.get("attention_bias", False)),
                tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
                eos_token_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (int(eos),),
                pad_token_id=config.get("pad_token_id"),
            )
        except KeyError as missing:
            raise CheckpointError(f"config.json: the field {missing} is missing") from None
        except (TypeError, ValueError) as wrong:
            raise CheckpointError(f"config.json: a field has a wrong type ({wrong})") from None

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-ready; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises CheckpointError for an unknown field."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise CheckpointError(f"model config: unknown fields {', '.join(unknown)}")
        return cls(**{**values, "eos_token_ids": tuple(values.get("eos_token_ids", ()))})
