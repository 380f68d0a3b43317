# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm distil`: a smaller model that learns from one or several larger ones, or from itself in 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from open_autoglm.cli.ask import choose_reading, kept_input
from open_autoglm.cli.data_options import HELP
from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.progress import ProgressBar

if TYPE_CHECKING:
    from open_autoglm.compress.distil import DistilOutcome

_EPILOG = (
    "Examples: `open-autoglm distil runs/snips/bundle --data examples/snips --student 2x128 --out runs/snips-tiny` · "
    "`open-autoglm distil runs/snips/bundle --student small --data examples/snips --out runs/snips-small` · "
    "`open-autoglm distil runs/snips/bundle --qat int4 --data examples/snips --out runs/snips-int4`"
)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="distil", epilog=_EPILOG)(distil_command)


def distil_command(
    teachers: Annotated[
        list[str],
        typer.Argument(help="Bundles, GLM checkpoint folders, or NAMEs of runs/NAME; of several, the mean is taught."),
    ],
    data: Annotated[Path, typer.Option(help=HELP["data"])],
    out: Annotated[Path, typer.Option(help="The run folder. The same command again continues it.")],
    student: Annotated[
        str | None,
        typer.Option(
            help="A model that is there, such as a pruned one, or a new one as LAYERSxWIDTH; half of the teacher's "
            "size if not given, with --qat the teacher itself."
        ),
    ] = None,
    qat: Annotated[
        Literal["int4"] | None, typer.Option(help="Train with weights rounded to 4 bits, and write them so.")
    ] = None,
    layout: Annotated[
        Literal["awq", "gptq", "compressed-tensors"] | None,
        typer.Option("--format", help="With --qat: write the tools' format instead of int4.safetensors of a bundle."),
    ] = None,
    group_size: Annotated[int, typer.Option(help="With --qat: inputs that share a scale, a multiple of 32.")] = 64,
    share: Annotated[
        float, typer.Option(help="Of the loss that follows the teachers' probabilities; the rest follows the data.")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(help="Softens the probabilities of both.")] = 2.0,
    hidden: Annotated[
        float, typer.Option(help="What the error of the hidden states counts beside that; 0 for none.")
    ] = 0.0,
    cache_top: Annotated[
        int, typer.Option(help="Ask the teachers once and keep so many likeliest tokens on disk; 0: at every step.")
    ] = 0,
    epochs: Annotated[float, typer.Option(help="How often the data is gone through.")] = 3.0,
    steps: Annotated[int | None, typer.Option(help="How many steps to train, in place of --epochs.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak; by what is trained if not given.")] = None,
    tokens_per_batch: Annotated[int, typer.Option(help="Tokens of one step.")] = 2048,
    max_length: Annotated[int, typer.Option(help="Tokens of an example at most.")] = 1024,
    valid: Annotated[Path | None, typer.Option(help=HELP["valid"])] = None,
    test: Annotated[Path | None, typer.Option(help=HELP["test"])] = None,
    columns: Annotated[list[str] | None, typer.Option(help=HELP["columns"])] = None,
    seed: Annotated[int, typer.Option(help=HELP["seed"])] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Distil TEACHERS into a smaller model on --data; with --qat int4, train a model for its 4-bit weights.

    With the seed of the build the data is split as the build split it, so the teacher's own test split stays unseen.
    """
    from open_autoglm.build_pipeline import find_splits
    from open_autoglm.cli.distil_scores import score_by_task
    from open_autoglm.compress.derived_model import is_bundle
    from open_autoglm.compress.distil import distil
    from open_autoglm.compress.distil_settings import SHAPE, DistilSettings
    from open_autoglm.data import parse_columns
    from open_autoglm.engine.model_paths import find_model

    folders = [find_model(teacher) for teacher in teachers]
    is_name = student is not None and not (SHAPE.fullmatch(student) and not Path(student).is_dir())
    named = str(find_model(student)) if student is not None and is_name else student
    settings = DistilSettings(
        student=named,
        share=share,
        temperature=temperature,
        hidden=hidden,
        cache_top=cache_top,
        epochs=epochs,
        steps=steps,
        learning_rate=learning_rate,
        tokens_per_batch=tokens_per_batch,
        max_length=max_length,
        seed=seed,
        qat=qat is not None,
        group_size=group_size,
        layout=layout,
    )
    with kept_input(data) as given, ProgressBar("distil", 1.0) as bar:
        train, found_valid, found_test = find_splits(given)
        chosen, _ = choose_reading(train, parse_columns(columns or []), None)
        outcome = distil(
            folders,
            train,
            out,
            settings,
            valid=valid or found_valid,
            test=test or found_test,
            columns=chosen or None,
            on_progress=lambda what, done, total: bar.update(done / total, f"{what} {done} of {total}"),
        )
        scores = None
        if is_bundle(folders[0]):
            scores = score_by_task(
                {"teacher": folders[0], "student": outcome.folder},
                train,
                valid=valid or found_valid,
                test=test or found_test,
                columns=chosen or None,
                seed=seed,
            )
    if as_json:
        print_json({"folder": str(outcome.folder), **outcome.report, "task_metric": scores})
    else:
        _show(outcome, scores)


def _show(outcome: DistilOutcome, scores: dict[str, Any] | None) -> None:
    report = outcome.report
    losses: dict[str, float] = report["losses"]
    rows = [
        (split, f"{losses[f'teacher_{split}']:.4f}", f"{losses[split]:.4f}")
        for split in ("valid", "test")
        if split in losses
    ]
    print_table("loss, nats per example", ("split", "teacher", "student"), rows)
    if scores is not None:
        said = ", ".join(f"{name} {_with_interval(scores[name])}" for name in ("teacher", "student"))
        print_line(f"{scores['metric']} on {scores['examples']} {scores['split']} examples: {said}")
    print_line(
        f"{outcome.folder}: {report['parameters']:,} parameters, {report['steps']} steps, {report['seconds']:.0f} s"
    )
    print_line(f"next:   open-autoglm serve {outcome.folder}")


def _with_interval(score: dict[str, Any]) -> str:
    bounds = score["interval"]
    return f"{score['value']:.4f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")
