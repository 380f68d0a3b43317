# SPDX-License-Identifier: Apache-2.0
"""The flags of `build` that fine-tune a checkpoint by an adapter, by LLaMA-Factory's names."""

from __future__ import annotations

from typing import Any, Final

from open_autoglm.errors import ConfigurationError

HELP: Final = {
    "adapter": "Fine-tune --base by an adapter: lora, or qlora on weights rounded to 4 or 8 bits.",
    "rank": "Of LoRA; 8 by default.",
    "alpha": "Of LoRA, which counts alpha / rank times; 16 by default.",
    "target": "Layers to adapt, such as q_proj,v_proj; all linear layers by default.",
    "dropout": "Of LoRA's input; 0 by default.",
    "bits": "Of the base below qlora: 4 (by default) or 8.",
}


def adapter_fields(
    kind: str | None,
    *,
    rank: int | None,
    alpha: float | None,
    target: list[str] | None,
    dropout: float | None,
    bits: int | None,
) -> dict[str, Any] | None:
    """The fields of `AdapterSettings` that were given, or None without an adapter.

    target: names, of which each may be several between commas. Raises ConfigurationError for a flag that has no effect.
    """
    targets = [name.strip() for item in target or [] for name in item.split(",") if name.strip()]
    given = {"rank": rank, "alpha": alpha, "targets": targets or None, "dropout": dropout, "base_bits": bits}
    fields = {name: value for name, value in given.items() if value is not None}
    if kind is not None:
        if bits is not None and kind != "qlora":
            raise ConfigurationError("--quantization-bit rounds the base below an adapter; it needs --adapter qlora")
        return {"kind": kind, **fields}
    if fields:
        flags = {"targets": "--lora-target", "base_bits": "--quantization-bit"}
        name = next(iter(fields))
        raise ConfigurationError(f"{flags.get(name, f'--lora-{name}')} needs --adapter lora or --adapter qlora")
    return None
