# SPDX-License-Identifier: Apache-2.0
"""The flags of the engine, which several commands take; named as in vLLM where the thing is the same."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from open_autoglm.errors import ConfigurationError


def _known_backend(name: str) -> str:
    from open_autoglm.engine.options import BACKENDS
    from open_autoglm.plugins.registry import PluginRegistry

    if name in ("auto", *BACKENDS):
        return name
    known = ("auto", *BACKENDS, *PluginRegistry().enabled("backend"))
    if name not in known:
        raise ConfigurationError(f"--backend: there is no '{name}'; choose one of: {', '.join(known)}")
    return name


Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        callback=_known_backend,
        help="What computes: `native`, `torch`, `onnx`, or a plugin; `auto` takes the native engine where it runs.",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        "--quantization",
        help="Weights in int8 or int4, or int8-dynamic (torchao, on torch); a bundle's own if not given.",
    ),
]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16, of weights that are not quantised.")]
KvCacheDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"],
    typer.Option(
        "--kv-cache-dtype", "--kv_cache_dtype", help="Numbers of the KV cache; the backend's own with `auto`."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads.")]
MaxNumSeqs = Annotated[
    int | None,
    typer.Option(
        "--max-num-seqs", "--max_num_seqs", min=1, help="Answers computed together; 64, or what memory allows."
    ),
]
MaxNumBatchedTokens = Annotated[
    int | None,
    typer.Option(
        "--max-num-batched-tokens",
        "--max_num_batched_tokens",
        min=1,
        help="Tokens of one step; 2048, or what the KV cache holds.",
    ),
]
KvBlocks = Annotated[
    int | None,
    typer.Option("--kv-blocks", "--kv_blocks", min=1, help="Pages of the KV cache; from free memory if not given."),
]
BlockSize = Annotated[
    int, typer.Option("--block-size", "--block_size", min=1, max=1024, help="Tokens of a page; native: 16, 32, ...")
]
EnablePrefixCaching = Annotated[
    bool,
    typer.Option(
        "--enable-prefix-caching/--no-enable-prefix-caching",
        "--enable_prefix_caching/--no_enable_prefix_caching",
        help="Compute what prompts begin with in common once.",
    ),
]
