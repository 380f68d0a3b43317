# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm plan`: how a model should run on a device, why, and how much memory and time that will take."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Annotated, Final

import typer

from open_autoglm.cli.output import print_json, print_line, print_table
from open_autoglm.errors import ConfigurationError

if TYPE_CHECKING:
    from open_autoglm.planning.plan import Plan

_EPILOG: Final = (
    "Examples: `open-autoglm plan runs/snips --target raspberry-pi-5` · "
    "`open-autoglm plan glm-edge-1.5b-chat/config.json --target board.yaml --context 4096 --json`"
)
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_DOES_NOT_FIT: Final = 1


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="plan", epilog=_EPILOG)(plan_command)


def plan_command(
    model: Annotated[
        str, typer.Argument(help="A bundle, a GLM checkpoint folder, the NAME of runs/NAME, or a config.json.")
    ],
    target: Annotated[
        str, typer.Option(help="A device by name, a YAML file that describes one, or cpu: this machine, measured.")
    ] = "cpu",
    max_memory: Annotated[
        str | None, typer.Option(help="Memory that may be taken, such as 900MB or 2GiB; the target's if not given.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that a prompt and its answer must have.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Answers that must be computed together.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Choose how MODEL runs on a target: weights, cache, context, batch, threads and backend, each with its reason.

    Exits with 1 when nothing fits.
    """
    from open_autoglm.planning.choosing import plan_model
    from open_autoglm.planning.machine import measure_this_machine
    from open_autoglm.planning.model_shape import read_model
    from open_autoglm.planning.timing import MeasuredSpeeds
    from open_autoglm.progress import ProgressBar
    from open_autoglm.targets import CPU, FORMATS, KNOWN_TARGETS, resolve_target

    size = None if max_memory is None else parse_size(max_memory)
    found = resolve_target(target)
    described = read_model(model)
    others = [resolve_target(name) for name in KNOWN_TARGETS if name != CPU]

    def planned(speeds: MeasuredSpeeds | None) -> Plan:
        return plan_model(
            described, found, max_memory=size, context=context, concurrency=concurrency, others=others, speeds=speeds
        )

    if found.is_this_machine:
        # The limits, then one format after the other: each is timed for a few seconds at most.
        with ProgressBar("measuring this machine", 1 + len(FORMATS)) as bar:
            bar.update(0, "memory and processor")
            found = measure_this_machine()
            plan = planned(MeasuredSpeeds(lambda done, note: bar.update(1 + done, note)))
    else:
        plan = planned(None)
    if as_json:
        print_json(plan.to_dict())
    else:
        _show(plan)
    if not plan.fits:
        raise typer.Exit(_DOES_NOT_FIT)


def parse_size(text: str) -> int:
    """`2GB`, `900M`, `1.5GiB` or bytes -> bytes. Raises ConfigurationError for anything else."""
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]I?)?B?", text.strip().upper())
    size = 0 if match is None else int(float(match[1]) * _UNITS[match[2] or ""])
    if size < 1:
        raise ConfigurationError(f"--max-memory '{text[:40]}' is not a size; write it like 900MB or 2GiB")
    return size


def _show(plan: Plan) -> None:
    title = f"{plan.model} ({plan.parameters / 1e6:,.1f}M parameters) on {plan.target.name}: {plan.target.processor}"
    if plan.setup is None or plan.memory is None:
        print_line(f"{title}\nnothing fits {plan.usable_memory / 1e6:,.0f} MB of memory")
    else:
        print_table(title, ("choice", "", "why"), [(one.what, one.value, one.reason) for one in plan.choices], texts=3)
        memory = plan.memory.to_dict()
        rows = [(name.replace("_", " "), f"{size / 1e6:,.1f} MB") for name, size in memory.items()]
        rows.append(("may be used", f"{plan.usable_memory / 1e6:,.1f} MB"))
        print_table("Memory at full context", ("part", "estimate"), rows)
    if plan.speed is not None:
        speed = plan.speed
        print_table(
            f"Speed, with {speed.context} tokens of context",
            ("tokens per second", "estimate" if speed.measured_layers is None else "measured"),
            [
                (f"prompt of {speed.prompt_tokens} tokens", f"{speed.prefill:,.0f}"),
                ("one answer", f"{speed.decode_x1:,.1f}"),
                ("eight answers together", f"{speed.decode_x8:,.1f}"),
            ],
        )
    rows = [(refused.what, refused.value, refused.reason) for refused in plan.refused]
    print_table("Refused", ("what", "", "why"), rows, texts=3)
    for change in plan.would_fit:
        print_line(f"would fit: {change}")
    for note in plan.notes:
        print_line(f"note: {note}")
    if plan.command:
        print_line(f"next: {shlex.join(plan.command)}")
