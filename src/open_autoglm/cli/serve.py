# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm serve`: a model behind OpenAI's chat API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from open_autoglm.cli.engine_options import (
    Backend,
    BlockSize,
    Dtype,
    EnablePrefixCaching,
    KvBlocks,
    KvCacheDtype,
    MaxNumBatchedTokens,
    MaxNumSeqs,
    Quantize,
    Threads,
)
from open_autoglm.cli.serve_options import read_settings, with_settings
from open_autoglm.serve.launch import LaunchPlan, launch
from open_autoglm.serve.models.memory_amount import bytes_of_text


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="serve", epilog="Example: `open-autoglm serve runs/snips/bundle --port 8080`")(
        with_settings(serve_command)
    )


def serve_command(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(help="Bundles, GLM checkpoint folders, or the NAME of runs/NAME; NAME=PATH gives a name."),
    ] = None,
    backend: Backend = "auto",
    quantize: Quantize = None,
    dtype: Dtype = None,
    kv_cache_dtype: KvCacheDtype = "auto",
    max_num_seqs: MaxNumSeqs = None,
    max_num_batched_tokens: MaxNumBatchedTokens = None,
    kv_blocks: KvBlocks = None,
    block_size: BlockSize = 16,
    enable_prefix_caching: EnablePrefixCaching = True,
    threads: Threads = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A YAML file of settings; `--print-config` writes one.")
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            "--print_config",
            help="Print the settings that hold and where each comes from, and end. Secrets are not shown.",
        ),
    ] = False,
    models: Annotated[
        Path | None,
        typer.Option(help="A YAML file of models, and of routes among them."),
    ] = None,
    preload: Annotated[
        bool, typer.Option(help="Load all models at the start; of several, each is loaded when first asked otherwise.")
    ] = False,
    max_loaded: Annotated[
        int | None, typer.Option("--max-loaded", "--max_loaded", min=1, help="Models loaded at one time.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option("--memory-limit", "--memory_limit", help="What all models take together, such as 4GB.")
    ] = None,
    require_signature: Annotated[
        Path | None,
        typer.Option(
            "--require-signature",
            "--require_signature",
            help="A public key; only bundles that its owner signed are served.",
        ),
    ] = None,
    pid_file: Annotated[
        Path | None,
        typer.Option(
            "--pid-file",
            "--pid_file",
            help="A file for the number of the server's process, which `deploy` needs.",
        ),
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Run the engine in the server's own process, unwatched.")
    ] = False,
    **flags: Any,
) -> None:
    """Serve models over HTTP as OpenAI does. Ends on Ctrl-C or SIGTERM, after the running answers.

    Settings come from --config, then the environment, then flags; the later is the stronger. On SIGHUP they are read
    again, and keys, limits, origins, the cache's size, certificates and the models of --models change without cutting
    any answer off.
    """
    configuration = read_settings(config, flags)
    if print_config:
        sys.stdout.write(configuration.as_yaml())
        return
    options = {
        "backend": backend,
        "quantize": quantize,
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "threads": threads,
        "max_batch_tokens": max_num_batched_tokens,
        "max_sequences": max_num_seqs,
        "kv_blocks": kv_blocks,
        "block_size": block_size,
        "enable_prefix_caching": enable_prefix_caching,
        "require_signature": None if require_signature is None else str(require_signature.resolve()),
    }
    plan = LaunchPlan(
        models=bundles or (),
        options={name: value for name, value in options.items() if value is not None},
        models_file=models,
        pid_file=pid_file,
        in_process=in_process,
        preload=preload,
        max_loaded=max_loaded,
        memory_limit=None if memory_limit is None else bytes_of_text(memory_limit, "--memory-limit"),
    )
    launch(plan, configuration.settings, reread=lambda: read_settings(config, flags).settings)
