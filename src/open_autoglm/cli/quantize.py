# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm quantize`: a model with its linear layers in 4 or 8 bits, for our engines and for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.progress import ProgressBar

if TYPE_CHECKING:
    from open_autoglm.compress.quantize_checkpoint import QuantizationOutcome

_EPILOG = (
    "Examples: `open-autoglm quantize path/to/glm-4-9b-chat --calibration texts.jsonl --out glm-4-9b-chat-int4` · "
    "`open-autoglm quantize runs/snips/bundle --method awq --calibration examples/snips/train.jsonl --out snips-awq`"
)
_SHOWN = 5


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="quantize", epilog=_EPILOG)(quantize_command)


def quantize_command(
    model: Annotated[str, typer.Argument(help="A bundle, a GLM checkpoint folder, or the NAME of runs/NAME.")],
    out: Annotated[
        Path, typer.Option(help="The folder to write. The same command again goes on after the last finished layer.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="How numbers are chosen: rtn (to nearest), gptq, awq, or a plugin; gptq and awq need --calibration."
        ),
    ] = "gptq",
    bits: Annotated[int, typer.Option(help="4 or 8.")] = 4,
    group_size: Annotated[
        int | None,
        typer.Option(help="Inputs that share a scale, a multiple of 32; -1 for the whole row, as is usual for 8 bits."),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Without or with zero points; without for 8 bits and for compressed-tensors.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text, or examples of any shape that `build` reads, like what the model will see."),
    ] = None,
    layout: Annotated[
        Literal["awq", "gptq", "compressed-tensors"] | None,
        typer.Option("--format", help="How it is written; by the method if not given."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Sequences of the calibration data.")] = 128,
    sequence_length: Annotated[int, typer.Option(help="Tokens of one of them at most.")] = 512,
    activation_order: Annotated[bool, typer.Option(help="GPTQ: the inputs with the largest activations first.")] = True,
    compensate: Annotated[
        bool,
        typer.Option(
            help="AWQ: round as GPTQ does after scaling; otherwise to nearest in clipped ranges, as published."
        ),
    ] = True,
    kv_cache_scales: Annotated[
        bool,
        typer.Option(
            "--kv-cache-scales",
            "--kv_cache_scales",
            help="Also write the scales with which vLLM keeps keys and values in 8 bits; needs --calibration.",
        ),
    ] = False,
    damping: Annotated[float, typer.Option(help="GPTQ: what is added to the Hessian, as a share of its mean.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the choice of sequences.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Quantise MODEL: write a checkpoint that this engine, transformers and vLLM read, and a report beside it.

    What comes of a bundle is a bundle, which names its parent and has no metrics yet: `open-autoglm eval` measures it.

    Layer by layer, so that a model of many gigabytes needs the memory of one layer. The report, `quantization.json`,
    has the error of every matrix.
    """
    from open_autoglm.compress.calibration import read_calibration
    from open_autoglm.compress.quantize_model import quantize_model
    from open_autoglm.compress.settings import quantization_settings
    from open_autoglm.engine.model_paths import find_model

    folder = find_model(model)
    settings = quantization_settings(
        method,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        layout=layout,
        damping=damping,
        activation_order=activation_order,
        compensate=compensate,
        cache_scales=kv_cache_scales,
    )
    data = None
    if calibration is not None and settings.needs_data:
        data = read_calibration(calibration, folder, samples=samples, length=sequence_length, seed=seed)
    with ProgressBar("quantize", 1.0) as bar:
        outcome = quantize_model(
            folder, out, settings, data, on_progress=lambda done, total: bar.update(done / total, f"{done} of {total}")
        )
    if as_json:
        print_json({"folder": str(outcome.folder), **outcome.report})
    else:
        _show(outcome)


def _show(outcome: QuantizationOutcome) -> None:
    report = outcome.report
    matrices: list[dict[str, Any]] = report["matrices"]

    def error_of(row: dict[str, Any]) -> float:
        return row.get("output_error", row["weight_error"])

    worst = sorted(matrices, key=error_of, reverse=True)[:_SHOWN]
    print_table(
        f"{len(matrices)} matrices; the largest errors",
        ("matrix", "method", "error of outputs", "error of weights", "tokens"),
        [
            (
                row["name"],
                row["method"],
                f"{row['output_error']:.2e}" if "output_error" in row else "",
                f"{row['weight_error']:.2e}",
                str(row["tokens"]),
            )
            for row in worst
        ],
    )
    notes = [row for row in matrices if row.get("note")]
    for row in notes[:_SHOWN]:
        print_line(f"{row['name']}: {row['note']}")
    if len(notes) > _SHOWN:
        print_line(f"and {len(notes) - _SHOWN} more; all are in {outcome.folder / 'quantization.json'}")
    if report["group_size"] != report["settings"]["group_size"]:
        print_line(f"groups of {report['group_size']}, since the model's matrices cannot be cut as asked for")
    print_line(
        f"{outcome.folder}: {report['size'] / 1e6:.1f} MB for {report['source_size'] / 1e6:.1f} MB, "
        f"{report['seconds']:.0f} s, {report['peak_memory'] / 1e9:.1f} GB of memory at most"
    )
    print_line(f"next:   open-autoglm serve {outcome.folder}")
