# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm eval`: score a bundle on a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from open_autoglm.cli.engine_options import Backend, KvCacheDtype, Threads
from open_autoglm.cli.output import print_json, print_line

if TYPE_CHECKING:
    from open_autoglm.evaluate import Evaluation


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="eval", epilog="Example: `open-autoglm eval runs/snips/bundle examples/snips/test.jsonl`")(
        eval_command
    )


def eval_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    data: Annotated[Path, typer.Argument(help="A file of the same shape as the training data.")],
    more_columns: Annotated[
        list[str] | None, typer.Argument(metavar="[ROLE=NAME]...", help="More pairs for --columns.", show_default=False)
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option(help="Which columns to use: input=NAME output=NAME. May be repeated.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="float32, int8 or int4; what the bundle names by default.")
    ] = None,
    backend: Backend = "auto",
    kv_cache_dtype: KvCacheDtype = "auto",
    threads: Threads = None,
    answers: Annotated[Path | None, typer.Option(help="Write each answer beside its reference, as JSON lines.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="What decides: a metric's name, FILE.yaml with rules, or FILE.py:FUNCTION.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Score BUNDLE on DATA with the metric of its task."""
    from open_autoglm.data import parse_columns
    from open_autoglm.evaluate import evaluate_bundle
    from open_autoglm.metrics import choose_metric

    evaluation = evaluate_bundle(
        bundle,
        data,
        columns=parse_columns([*(columns or []), *(more_columns or [])]),
        weights=weights,
        backend=backend,
        kv_cache_dtype=kv_cache_dtype,
        threads=threads,
        metric=None if metric is None else choose_metric(metric),
        answers_path=answers,
    )
    if as_json:
        print_json(evaluation.to_dict())
        return
    print_line(f"{evaluation.metric}: {_told(evaluation, evaluation.metric)} over {evaluation.n} examples")
    for name in sorted(evaluation.metrics):
        if name != evaluation.metric:
            print_line(f"{name}: {_told(evaluation, name)}")


def _told(evaluation: Evaluation, name: str) -> str:
    value, bounds = evaluation.metrics[name], evaluation.intervals.get(name)
    return f"{value:.4f}" if bounds is None else f"{value:.4f} (95%: {bounds[0]:.4f} to {bounds[1]:.4f})"
