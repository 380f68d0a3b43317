# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm serve`: a model behind OpenAI's chat API."""

from __future__ import annotations

from typing import Annotated

import typer

from open_autoglm.serve.settings import API_KEY_VARIABLE, DEFAULT_HOST, DEFAULT_PORT, ServeSettings


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="serve", epilog="Example: `open-autoglm serve runs/snips/bundle --port 8080`")(serve_command)


def serve_command(
    bundle: Annotated[str, typer.Argument(help="A bundle, a GLM checkpoint folder, or the NAME of runs/NAME.")],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(help="The port to listen on; 0 takes any free one.")] = DEFAULT_PORT,
    served_model_name: Annotated[
        str | None,
        typer.Option("--served-model-name", "--served_model_name", help="What clients call the model."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option("--quantize", "--quantization", help="Weights in int8 or int4.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", "--max_num_seqs", min=1, help="Answers that are computed together.")
    ] = 64,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option("--max-num-batched-tokens", "--max_num_batched_tokens", min=1, help="Tokens of one step."),
    ] = 2048,
    kv_blocks: Annotated[
        int | None,
        typer.Option("--kv-blocks", "--kv_blocks", min=1, help="Pages of the KV cache; from free memory if not given."),
    ] = None,
    block_size: Annotated[
        int, typer.Option("--block-size", "--block_size", min=1, max=1024, help="Tokens of a page.")
    ] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", "--api_key", envvar=API_KEY_VARIABLE, help="What clients must send as a bearer token."
        ),
    ] = None,
    allow_unauthenticated: Annotated[
        bool,
        typer.Option(
            "--allow-unauthenticated",
            "--allow_unauthenticated",
            help="Listen on an address that others reach, without a key.",
        ),
    ] = False,
) -> None:
    """Serve BUNDLE: /v1/chat/completions, /v1/models, /health. Ends on Ctrl-C or SIGTERM, after the running answers."""
    from open_autoglm.engine import LLM
    from open_autoglm.serve.server import run_server

    settings = ServeSettings(
        host=host,
        port=port,
        api_key=api_key,
        allow_unauthenticated=allow_unauthenticated,
        served_model_name=served_model_name,
    )

    def load() -> LLM:
        return LLM(
            bundle,
            quantize=quantize,
            dtype=dtype,
            threads=threads,
            max_batch_tokens=max_num_batched_tokens,
            max_sequences=max_num_seqs,
            kv_blocks=kv_blocks,
            block_size=block_size,
        )

    run_server(load, settings)
