# SPDX-License-Identifier: Apache-2.0
"""Run a GGUF file by llama.cpp in a process of its own; the interpreter needs llama-cpp-python and numpy alone.

stdin: {"model", "logits_file", "token_ids": [[...]], "texts": [...]}. Writes the logits of each row of token ids, one
array `row_N` of float32[tokens, vocabulary], and prints {"ids": token ids of each text, "special": id -> whether it
ends an answer, "template": the chat template}. llama_decode gets each row in two pieces, so that the cache is used.
"""

from __future__ import annotations

import ctypes
import json
import sys

import numpy as np
from llama_cpp import llama_cpp as c_api


def main() -> None:
    asked = json.load(sys.stdin)
    silence = c_api.llama_log_callback(lambda *_: None)
    c_api.llama_log_set(silence, ctypes.c_void_p())
    c_api.llama_backend_init()
    model = c_api.llama_model_load_from_file(asked["model"].encode(), c_api.llama_model_default_params())
    if not model:
        raise SystemExit("llama.cpp cannot load the file")
    vocabulary = c_api.llama_model_get_vocab(model)
    size = c_api.llama_vocab_n_tokens(vocabulary)
    params = c_api.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 512, 512, 512, 1
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    context = c_api.llama_init_from_model(model, params)
    logits = {f"row_{number}": run(context, row, size) for number, row in enumerate(asked["token_ids"])}
    np.savez(asked["logits_file"], **logits)
    ends = [token_id for token_id in range(size) if c_api.llama_vocab_is_eog(vocabulary, token_id)]
    template = c_api.llama_model_chat_template(model, None)
    said = {
        "ids": [tokenize(vocabulary, text) for text in asked["texts"]],
        "ends": ends,
        "template": None if template is None else template.decode(),
    }
    print(json.dumps(said))


def run(context: ctypes.c_void_p, row: list[int], size: int) -> np.ndarray:
    c_api.llama_memory_clear(c_api.llama_get_memory(context), True)
    batch = c_api.llama_batch_init(len(row), 0, 1)
    found: list[np.ndarray] = []
    half = max(1, len(row) // 2)
    for start, end in ((0, half), (half, len(row))):
        if start == end:
            continue
        batch.n_tokens = end - start
        for place, token in enumerate(row[start:end]):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.logits[place] = 1, True
            batch.seq_id[place][0] = 0
        if c_api.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        values = np.ctypeslib.as_array(c_api.llama_get_logits(context), (end - start, size))
        found.append(values.copy())
    c_api.llama_batch_free(batch)
    return np.concatenate(found)


def tokenize(vocabulary: ctypes.c_void_p, text: str) -> list[int]:
    data = text.encode()
    room = (c_api.llama_token * (2 * len(data) + 8))()
    count = c_api.llama_tokenize(vocabulary, data, len(data), room, len(room), False, False)
    return list(room[:count])


if __name__ == "__main__":
    main()
