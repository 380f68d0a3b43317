# SPDX-License-Identifier: Apache-2.0
"""A checkpoint in transformers, in float32 and in torchao's dynamic int8: predictions and times, for bench/compress.py.

python bench/peers/quantize_torchao.py MODEL WINDOWS.npy OUT.npz THREADS ROUNDS
"""

import copy
import json
import statistics
import sys
import time

import numpy as np
import torch
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from transformers import AutoModelForCausalLM

_BATCH = 8
_PROMPT = 64
_TOKENS = 24


def main() -> None:
    """Write float32 log-probabilities of each window's tokens from the third on, print milliseconds per token."""
    folder, windows, out, threads, rounds = sys.argv[1:]
    torch.set_num_threads(int(threads))
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    rounded = copy.deepcopy(exact)
    quantize_(rounded, Int8DynamicActivationInt8WeightConfig())
    rows = torch.from_numpy(np.load(windows))
    with torch.inference_mode():
        parts = [rounded(rows[start : start + _BATCH]).logits[:, 1:-1] for start in range(0, len(rows), _BATCH)]
        np.save(out, torch.cat([part.flatten(0, 1).log_softmax(-1) for part in parts]).numpy())
        times = {"float32": [], "int8": []}
        for _ in range(int(rounds)):
            for name, model in (("float32", exact), ("int8", rounded)):
                times[name].append(_milliseconds(model, rows[0, :_PROMPT]))
    print(json.dumps({name: statistics.median(found) for name, found in times.items()}))


def _milliseconds(model: torch.nn.Module, prompt: torch.Tensor) -> float:
    """Per token, one after the other with a KV cache, the median."""
    state = model(prompt[None], use_cache=True)
    found = []
    for _ in range(_TOKENS):
        token = state.logits[:, -1:].argmax(-1)
        began = time.perf_counter()
        state = model(token, past_key_values=state.past_key_values, use_cache=True)
        found.append(time.perf_counter() - began)
    return 1000 * statistics.median(found)


if __name__ == "__main__":
    main()
