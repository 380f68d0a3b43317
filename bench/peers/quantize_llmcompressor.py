# SPDX-License-Identifier: Apache-2.0
"""Quantise a checkpoint with llm-compressor, for bench/compress.py; runs in an environment of its own.

python bench/peers/quantize_llmcompressor.py MODEL TOKENS.npy OUT METHOD GROUP_SIZE
"""

import sys
from pathlib import Path

import numpy as np
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.awq.mappings import AWQMapping
from transformers import AutoModelForCausalLM

_MAPPINGS = [
    AWQMapping("re:.*input_layernorm$", ["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"]),
    AWQMapping("re:.*v_proj$", ["re:.*o_proj$"]),
    AWQMapping("re:.*post_attention_layernorm$", ["re:.*gate_up_proj$"]),
    AWQMapping("re:.*gate_up_proj$", ["re:.*down_proj$"]),
]
"""GLM's gate and up are one matrix, which the library's own list for it does not know."""


def main() -> None:
    """Write a compressed-tensors checkpoint, asymmetric in 4 bits."""
    model_folder, tokens, out, method, group_size = sys.argv[1:]
    rows = np.load(tokens)
    scheme = {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": False,
                "strategy": "group",
                "group_size": int(group_size),
            },
        }
    }
    modifier = GPTQModifier if method == "gptq" else QuantizationModifier
    rounding = modifier(config_groups=scheme, ignore=["lm_head"])
    recipe = [AWQModifier(mappings=_MAPPINGS), rounding] if method == "awq" else rounding
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="float32")
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": np.ones_like(rows).tolist()})
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=rows.shape[1],
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(Path(out), save_compressed=True)


if __name__ == "__main__":
    main()
