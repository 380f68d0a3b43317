# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm export`: a model for llama.cpp, transformers, PEFT or ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from open_autoglm.cli.output import print_json, print_line
from open_autoglm.errors import ConfigurationError
from open_autoglm.progress import ProgressBar

_EPILOG: Final = (
    "Examples: `open-autoglm export runs/support/bundle --format gguf --type q8_0 --out support.gguf` · "
    "`open-autoglm export path/to/glm-4-9b-chat --format huggingface --dtype bfloat16 --out glm-4-9b-chat-hf`"
)
_BELONGS: Final = {
    "type": "gguf",
    "tokenizer": "gguf",
    "dtype": "huggingface",
    "max_shard_size": "huggingface",
    "base": "peft",
    "precision": "onnx",
}
"""Option -> the one format that it is for."""


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="export", epilog=_EPILOG)(export_command)


def export_command(
    model: Annotated[str, typer.Argument(help="A bundle, a GLM checkpoint folder, or the NAME of runs/NAME.")],
    out: Annotated[Path, typer.Option(help="What to write: a file for gguf, a folder for the others.")],
    format_: Annotated[
        Literal["gguf", "huggingface", "peft", "onnx"],
        typer.Option(
            "--format",
            help="For llama.cpp; for transformers and vLLM; the adapter alone, for PEFT; for ONNX Runtime.",
        ),
    ],
    type_: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q4_0"] | None,
        typer.Option("--type", help="gguf: of the weights; f16 if not given."),
    ] = None,
    tokenizer: Annotated[
        Literal["exact", "nearest", "none"] | None,
        typer.Option(
            help="gguf: refuse a tokenizer that llama.cpp would read otherwise (exact, if not given), take the nearest "
            "that it knows, or leave the tokenizer out."
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(help="huggingface: of the weights; the model's own if not given."),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="huggingface: the largest file, such as 500MB; 5GB if not given.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="peft: by which name or path others find the base model; as built if not given.")
    ] = None,
    precision: Annotated[
        Literal["float32", "int4"] | None, typer.Option(help="onnx: of the weights; float32 if not given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older export.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Write MODEL for another program. A bundle is verified first, and stays as it is."""
    given = {
        "type": type_, "tokenizer": tokenizer, "dtype": dtype, "max_shard_size": max_shard_size, "base": base,
        "precision": precision,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and _BELONGS[name] != format_:
            flag = name.replace("_", "-")
            raise ConfigurationError(f"--{flag} is for --format {_BELONGS[name]}, not for {format_}; leave it out")

    from open_autoglm.engine.model_paths import find_model
    from open_autoglm.export.source import open_source

    source = open_source(find_model(model))
    report: dict[str, Any]
    with ProgressBar(f"export {format_}", 1.0) as bar:

        def show(done: int, total: int) -> None:
            bar.update(done / total, f"{done} of {total} {'layers' if format_ == 'onnx' else 'tensors'}")

        if format_ == "gguf":
            from open_autoglm.export.gguf import export_gguf

            report = export_gguf(
                source, out, kind=type_ or "f16", tokenizer=tokenizer or "exact", force=force, on_progress=show
            )
        elif format_ == "huggingface":
            from open_autoglm.export.huggingface import export_huggingface

            report = export_huggingface(
                source,
                out,
                dtype=dtype or "auto",
                max_shard_size=max_shard_size or "5GB",
                force=force,
                on_progress=show,
            )
        elif format_ == "peft":
            from open_autoglm.export.peft import export_peft

            report = export_peft(source, out, base=base, force=force)
        else:
            from open_autoglm.export.onnx import export_onnx

            report = export_onnx(source, out, precision=precision or "float32", force=force, on_progress=show)
    if as_json:
        print_json(report)
        return
    print_line(f"{report.get('file') or report['folder']}: {report['bytes'] / 1e6:.1f} MB")
    for note in report["notes"]:
        print_line(f"note:   {note}")
