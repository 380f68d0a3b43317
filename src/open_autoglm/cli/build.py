# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm build`: a file of data becomes a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from open_autoglm.cli.adapter_options import HELP as ADAPTER_HELP
from open_autoglm.cli.adapter_options import adapter_fields
from open_autoglm.cli.ask import choose_reading, kept_input
from open_autoglm.cli.data_options import HELP
from open_autoglm.cli.leaderboard import print_board
from open_autoglm.cli.output import print_json, print_line

_EPILOG = (
    "Examples: `open-autoglm build examples/snips --budget 15m` · "
    "`open-autoglm build 工单.csv --columns input=内容 output=标签 --out runs/工单`"
)


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="build", epilog=_EPILOG)(build_command)


def _print_space(wanted: bool) -> None:
    if not wanted:
        return
    from open_autoglm.search.space import Frame, default_space
    from open_autoglm.task import TaskKind

    space = default_space(TaskKind.EXTRACTION, Frame(512, 512, (), 0), seed=0)
    print_line(json.dumps(space.to_dict(), indent=2))
    raise typer.Exit


def build_command(
    data: Annotated[Path, typer.Argument(help=HELP["data"])],
    more_columns: Annotated[
        list[str] | None, typer.Argument(metavar="[ROLE=NAME]...", help=HELP["more_columns"], show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/NAME by default. The same command again continues it.")
    ] = None,
    valid: Annotated[Path | None, typer.Option(help=HELP["valid"])] = None,
    test: Annotated[Path | None, typer.Option(help=HELP["test"])] = None,
    task: Annotated[str | None, typer.Option(help=HELP["task"])] = None,
    columns: Annotated[list[str] | None, typer.Option(help=HELP["columns"])] = None,
    mask_pii: Annotated[bool, typer.Option("--mask-pii", help=HELP["mask_pii"])] = False,
    remove_near_duplicates: Annotated[
        bool, typer.Option("--remove-near-duplicates", help=HELP["remove_near_duplicates"])
    ] = False,
    base: Annotated[Path | None, typer.Option(help="A GLM checkpoint folder to start from.")] = None,
    adapter: Annotated[str | None, typer.Option(metavar="lora|qlora", help=ADAPTER_HELP["adapter"])] = None,
    lora_rank: Annotated[int | None, typer.Option("--lora-rank", "--rank", help=ADAPTER_HELP["rank"])] = None,
    lora_alpha: Annotated[float | None, typer.Option("--lora-alpha", "--alpha", help=ADAPTER_HELP["alpha"])] = None,
    lora_target: Annotated[list[str] | None, typer.Option(help=ADAPTER_HELP["target"])] = None,
    lora_dropout: Annotated[float | None, typer.Option(help=ADAPTER_HELP["dropout"])] = None,
    quantization_bit: Annotated[int | None, typer.Option(help=ADAPTER_HELP["bits"])] = None,
    target: Annotated[
        str,
        typer.Option(
            help="The device that the model is for, by name (raspberry-pi-5, laptop, h100, ...) or a YAML file; cpu is "
            "this machine. Training runs here in any case."
        ),
    ] = "cpu",
    budget: Annotated[str, typer.Option(help="The time for everything: 90s, 15m, 1h30m.")] = "15m",
    trials: Annotated[int | None, typer.Option(help="How many trials to start; by the budget if not given.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Train the winner for exactly so many steps, whatever the time.")
    ] = None,
    seed: Annotated[int, typer.Option(help=HELP["seed"])] = 0,
    tolerance: Annotated[
        str, typer.Option(help="What smaller weights may cost of the metric to be served by default: 1%, 0.5%, 0.")
    ] = "1%",
    metric: Annotated[
        str | None,
        typer.Option(help="What decides between models: a metric's name, FILE.yaml with rules, or FILE.py:FUNCTION."),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="A YAML file with what may be searched; begin with what --print-space prints.")
    ] = None,
    print_space: Annotated[
        bool,
        typer.Option(
            "--print-space",
            help="Print what is searched for a model from nothing, and end.",
            is_eager=True,
            callback=_print_space,
        ),
    ] = False,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="One answer alone on the target may take so long at most.")
    ] = None,
    min_tokens_per_s: Annotated[float | None, typer.Option(help="One answer alone must come so fast at least.")] = None,
    max_memory_mb: Annotated[
        float | None, typer.Option(help="int8 weights and the cache of one context may take so much at most.")
    ] = None,
    max_size_mb: Annotated[float | None, typer.Option(help="The file of int8 weights may be so large at most.")] = None,
    executor: Annotated[
        Literal["auto", "inline", "process", "ray"],
        typer.Option(help="Where trials run: one by one, in processes of their own, or on a Ray cluster."),
    ] = "auto",
    parallel_trials: Annotated[
        int | None, typer.Option(help="How many trials run at a time; what is fastest here if not given.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="A plugin that proposes trials, in place of TPE.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A plugin that makes the tokenizer, in place of ours.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Of the model, as SPDX names it.")] = None,
    print_pipeline: Annotated[
        bool,
        typer.Option("--print-pipeline", help="Print the build as a pipeline's file, for `run`; build nothing."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Build a small GLM from DATA: read, search, train, compress, package."""
    del print_space
    from open_autoglm.build_pipeline import as_file, build, check_settings, find_splits
    from open_autoglm.data import parse_columns
    from open_autoglm.search.leaderboard import Leaderboard

    limits = {
        "latency_ms": max_latency_ms,
        "tokens_per_s": min_tokens_per_s,
        "memory_mb": max_memory_mb,
        "size_mb": max_size_mb,
    }
    with kept_input(data) as given:
        chosen, task = choose_reading(
            find_splits(given)[0], parse_columns([*(columns or []), *(more_columns or [])]), task
        )
        asked: dict[str, Any] = {
            "out": out,
            "valid": valid,
            "test": test,
            "task": task,
            "columns": chosen,
            "base": base,
            "target": target,
            "budget": budget,
            "trials": trials,
            "steps": steps,
            "seed": seed,
            "mask_pii": mask_pii,
            "remove_near_duplicates": remove_near_duplicates,
            "metric": metric,
            "space": space,
            "hardware_constraint": {name: value for name, value in limits.items() if value is not None},
            "executor": executor,
            "parallel_trials": parallel_trials,
            "adapter": adapter_fields(
                adapter,
                rank=lora_rank,
                alpha=lora_alpha,
                target=lora_target,
                dropout=lora_dropout,
                bits=quantization_bit,
            ),
            "tolerance": tolerance,
            "license": license_,
            "sampler": sampler,
            "tokenizer": tokenizer,
        }
        if print_pipeline:
            print(as_file(check_settings(given, **asked)), end="")  # noqa: T201
            return
        result = build(given, **asked)
    if as_json:
        print_json(result.to_dict())
        return
    board = Leaderboard.load(result.leaderboard)
    print_board(board)
    for name, value in sorted(result.metrics.items()):
        print_line(f"{name}: {value:.4f}")
    print_line(f"bundle: {result.bundle} ({result.task}, {result.seconds:.0f} s)")
    print_line(f"next:   open-autoglm serve {result.bundle}")
