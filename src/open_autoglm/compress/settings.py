# SPDX-License-Identifier: Apache-2.0
"""How a model is to be quantised: checked once, and written into the report."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

from open_autoglm.compress.gptq import GptqSettings
from open_autoglm.compress.layer_rounding import RoundingMethod
from open_autoglm.errors import ConfigurationError
from open_autoglm.models.packed_codes import Method
from open_autoglm.plugins.registry import PluginRegistry

METHODS: Final[tuple[str, ...]] = get_args(RoundingMethod)
FORMATS: Final[tuple[str, ...]] = get_args(Method)
DEFAULT_GROUP_SIZE: Final = 128
LEAST_GROUP: Final = 32
"""The smallest group that the engines compute with."""

_LAYOUTS: Final[dict[str, Method]] = {"awq": "awq", "gptq": "gptq", "rtn": "compressed-tensors"}


@dataclass(frozen=True)
class QuantizationSettings:
    """A quantisation, as asked for.

    method: how codes are found, ours or a plugin's name. bits: 4 or 8. group_size: inputs that share a scale, -1 for
    the whole row. symmetric: no zero points. layout: the format written. search: look for the range of least error;
    otherwise each grid spans the whole range of its group. damping, activation_order: GPTQ's, as `GptqSettings` says.
    compensate: AWQ's scaled weights are rounded as GPTQ's are, each error made up for by the columns to come; otherwise
    to the nearest code of clipped ranges, as AWQ was published. cache_scales: write the scales with which vLLM keeps
    each layer's keys and values in 8-bit floating point. plugin: the digest of the plugin's content, filled in.
    Raises ConfigurationError for what does not go together.
    """

    method: RoundingMethod | str = "gptq"
    bits: int = 4
    group_size: int = DEFAULT_GROUP_SIZE
    symmetric: bool = False
    layout: Method = "awq"
    search: bool = True
    damping: float = 0.01
    activation_order: bool = True
    compensate: bool = True
    cache_scales: bool = False
    plugin: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            known = PluginRegistry().enabled("quantizer")
            if self.method not in known:
                raise ConfigurationError(
                    f"unknown method '{self.method}'; choose one of: {', '.join((*METHODS, *known))}"
                )
            object.__setattr__(self, "plugin", known[self.method].digest)
        if self.layout not in FORMATS:
            raise ConfigurationError(f"unknown format '{self.layout}'; choose one of: {', '.join(FORMATS)}")
        if self.cache_scales and self.layout != "compressed-tensors":
            raise ConfigurationError(
                f"the {self.layout} format has no place for scales of the KV cache; choose --format compressed-tensors"
            )
        if self.bits not in (4, 8):
            raise ConfigurationError(f"--bits must be 4 or 8, not {self.bits}")
        if self.layout == "awq" and self.bits != 4:
            raise ConfigurationError("the awq format has 4 bits only; choose --format gptq or compressed-tensors")
        if self.group_size != -1 and (self.group_size < LEAST_GROUP or self.group_size % LEAST_GROUP):
            raise ConfigurationError(
                f"--group-size must be a multiple of {LEAST_GROUP}, or -1 for the whole row, not {self.group_size}"
            )
        if not math.isfinite(self.damping) or not 0 < self.damping <= 1:
            raise ConfigurationError(f"--damping must be more than 0 and at most 1, not {self.damping}")

    @property
    def gptq(self) -> GptqSettings:
        """What GPTQ takes of it."""
        return GptqSettings(self.damping, self.activation_order)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the plugin only where there is one."""
        return {name: value for name, value in asdict(self).items() if name != "plugin" or value is not None}

    @property
    def aims_at_exact(self) -> bool:
        """Whether matrices make up for what was lost before them, so that the exact model's states are needed."""
        return self.method in ("gptq", "awq")

    @property
    def needs_data(self) -> bool:
        """Whether calibration data are needed."""
        return self.aims_at_exact or self.cache_scales


def quantization_settings(
    method: RoundingMethod | str,
    *,
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool | None = None,
    layout: Method | None = None,
    damping: float = 0.01,
    activation_order: bool = True,
    compensate: bool = True,
    cache_scales: bool = False,
) -> QuantizationSettings:
    """Settings of which those that are None follow from the others, as is usual for the method and the bits.

    Raises ConfigurationError for what does not go together.
    """
    usual = "gptq" if bits == 8 and method == "awq" else _LAYOUTS.get(method, "compressed-tensors")
    chosen: Method = layout or ("compressed-tensors" if cache_scales else usual)
    return QuantizationSettings(
        method=method,
        bits=bits,
        group_size=group_size if group_size is not None else (-1 if bits == 8 else DEFAULT_GROUP_SIZE),
        symmetric=symmetric if symmetric is not None else bits == 8 or chosen == "compressed-tensors",
        layout=chosen,
        damping=damping,
        activation_order=activation_order,
        compensate=compensate,
        cache_scales=cache_scales,
    )
