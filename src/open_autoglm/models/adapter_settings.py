# SPDX-License-Identifier: Apache-2.0
"""What can be chosen about fine-tuning a checkpoint by an adapter, in LLaMA-Factory's and PEFT's words; no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from open_autoglm.errors import ConfigurationError
from open_autoglm.spelling import did_you_mean

ADAPTER_KINDS: Final = ("lora", "qlora", "soft_prompt")
ALL_LINEAR: Final = ("all", "all-linear")
"""Either word stands for every linear layer of the decoder, but for routed experts and routers."""

_BITS: Final = (4, 8)


@dataclass(frozen=True)
class AdapterSettings:
    """An adapter on a frozen checkpoint.

    kind: `lora` on the checkpoint's own weights, `qlora` on weights rounded to `base_bits` bits, or `soft_prompt`.
    rank, alpha: of LoRA; its product counts alpha / rank times. dropout: of the input of LoRA's first matrix.
    targets: names of linear layers, such as `q_proj` or `layers.0.mlp.down_proj`; `all` for all of them.
    prompt_length: learnt vectors before each sequence, for `soft_prompt`.
    Raises ConfigurationError, naming the field.
    Source: Hu et al. 2021 (LoRA), Dettmers et al. 2023 (QLoRA), Lester et al. 2021 (prompt tuning).
    """

    kind: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all",)
    prompt_length: int = 16
    base_bits: int = 4

    def __post_init__(self) -> None:
        if self.kind not in ADAPTER_KINDS:
            raise ConfigurationError(f"adapter: unknown kind '{self.kind}'{did_you_mean(self.kind, ADAPTER_KINDS)}")
        for name in ("rank", "prompt_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65536:
                raise ConfigurationError(f"adapter: {name} must be a whole number of at least 1, not {value!r}")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ConfigurationError(f"adapter: alpha must be positive, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"adapter: dropout must be at least 0 and less than 1, not {self.dropout}")
        if self.base_bits not in _BITS:
            raise ConfigurationError(f"adapter: base_bits must be 4 or 8, not {self.base_bits}")
        object.__setattr__(self, "targets", tuple(self.targets))  # JSON has lists
        if not self.targets or not all(isinstance(target, str) and target for target in self.targets):
            raise ConfigurationError("adapter: targets must name at least one linear layer, or be 'all'")

    @property
    def scaling(self) -> float:
        """By what LoRA's product is multiplied."""
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {**asdict(self), "targets": list(self.targets)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdapterSettings:
        """The inverse of `to_dict`. Raises ConfigurationError for an unknown field or a value out of range."""
        known = [item.name for item in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigurationError(f"adapter: unknown field '{name}'{did_you_mean(name, known)}")
        return cls(**values)
