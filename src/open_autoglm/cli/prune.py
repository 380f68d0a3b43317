# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm prune`: a model with fewer layers, heads and channels, for our engines and for others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.progress import ProgressBar

if TYPE_CHECKING:
    from open_autoglm.compress.prune_checkpoint import PruningOutcome

_EPILOG = (
    "Examples: `open-autoglm prune runs/snips/bundle --ratio 30% --calibration examples/snips/train.jsonl "
    "--out small` · "
    "`open-autoglm prune path/to/glm-4-9b-chat --layers 32 --calibration texts.jsonl --out glm-32-layers`"
)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="prune", epilog=_EPILOG)(prune_command)


def prune_command(
    model: Annotated[str, typer.Argument(help="A bundle, a GLM checkpoint folder, or the NAME of runs/NAME.")],
    calibration: Annotated[
        Path, typer.Option(help="Text, or examples of any shape that `build` reads, like what the model will see.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write, a new one.")],
    ratio: Annotated[
        str | None, typer.Option(help="The share of the decoder to remove from heads and channels: 30%, 0.3.")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="How many decoder layers stay.")] = None,
    heads: Annotated[
        int | None, typer.Option(help="How many query heads of a layer stay, with the key heads that belong to them.")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="How many feed-forward channels of a layer stay.")] = None,
    repair: Annotated[
        bool, typer.Option(help="Let what stays make up for what goes, by least squares on the calibration data.")
    ] = True,
    samples: Annotated[int, typer.Option(help="Sequences of the calibration data.")] = 128,
    sequence_length: Annotated[int, typer.Option(help="Tokens of one of them at most.")] = 512,
    seed: Annotated[int, typer.Option(help="Of the choice of sequences.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Prune MODEL: remove what adds least on the calibration data, and write an ordinary, smaller GLM.

    Every layer keeps as many heads and channels as the others. A pruned model has lost something: `distil` with it as
    --student brings much of that back. The report, `pruning.json`, says what went.
    """
    from open_autoglm.compress.calibration import read_calibration
    from open_autoglm.compress.prune_checkpoint import prune_checkpoint
    from open_autoglm.compress.pruned_shape import PruningSettings, parse_share
    from open_autoglm.engine.model_paths import find_model

    folder = find_model(model)
    settings = PruningSettings(layers, heads, channels, None if ratio is None else parse_share(ratio), repair)
    data = read_calibration(calibration, folder, samples=samples, length=sequence_length, seed=seed)
    with ProgressBar("prune", 1.0) as bar:
        outcome = prune_checkpoint(
            folder, out, settings, data, on_progress=lambda done, total: bar.update(done / total, f"{done} of {total}")
        )
    if as_json:
        print_json({"folder": str(outcome.folder), **outcome.report})
    else:
        _show(outcome)


def _show(outcome: PruningOutcome) -> None:
    report = outcome.report
    before, after = report["before"], report["after"]
    named = (
        ("decoder layers", "num_hidden_layers"),
        ("query heads", "num_attention_heads"),
        ("key heads", "num_key_value_heads"),
        ("channels", "intermediate_size"),
        ("parameters", "parameters"),
    )
    rows = [(title, f"{before[key]:,}", f"{after[key]:,}") for title, key in named]
    print_table("what stays", ("", "before", "after"), rows)
    print_table(
        "what went, as a share of what the layer's heads and channels add",
        ("layer", "of heads", "of channels"),
        [(str(row["layer"]), f"{row['head_share']:.1%}", f"{row['channel_share']:.1%}") for row in report["layers"]],
    )
    print_line(
        f"{outcome.folder}: {report['size'] / 1e6:.1f} MB for {report['source_size'] / 1e6:.1f} MB, "
        f"{report['seconds']:.0f} s"
    )
    print_line(f"next:   open-autoglm distil MODEL --student {outcome.folder} --data DATA --out FOLDER")
