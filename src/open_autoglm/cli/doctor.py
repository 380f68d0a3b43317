# SPDX-License-Identifier: Apache-2.0
"""`open-autoglm doctor`: what this machine has, which engine is used and why, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from open_autoglm.cli.output import print_json, print_line, print_table

_SERVING: Final = ("starlette", "uvicorn", "llguidance", "tokenizers", "safetensors", "numpy")
_BUILDING: Final = ("torch", "optuna", "polars", "scikit-learn", "dbos")

_USUAL_ALLOCATOR: Final = "the system's; on Linux jemalloc is faster: apt install libjemalloc2"


def register(app: typer.Typer) -> None:
    """Add the command to the tree."""
    app.command(name="doctor", epilog="Example: `open-autoglm doctor --json`")(doctor_command)


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line of stdout.")] = False,
) -> None:
    """Show what this machine can do, and what to install for what it cannot."""
    findings = examine()
    if as_json:
        print_json(findings)
    else:
        print_table(
            "Open-AutoGLM on this machine",
            ("what", "found"),
            [(key, str(value)) for key, value in findings["machine"].items()],
        )
        print_table(
            "Libraries", ("library", "version"), [(k, v or "missing") for k, v in findings["libraries"].items()]
        )
        engine = findings["engine"]
        print_table(
            "Engines",
            ("backend", "runs here", "on what, or why not"),
            [
                (name, "yes" if found["available"] else "no", found["detail"])
                for name, found in engine["backends"].items()
            ],
        )
        print_line(f"engine: {engine['backend'] or 'none'}: {engine['reason']}")
        for problem in findings["problems"]:
            print_line(f"problem: {problem}")
        if not findings["problems"]:
            print_line("everything needed to build and to serve is here")
    if findings["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """The findings, JSON-ready: `machine`, `libraries`, `engine`, `problems`."""
    from open_autoglm.errors import ConfigurationError
    from open_autoglm.memory_allocator import VARIABLE, find_allocator
    from open_autoglm.targets import resolve_target
    from open_autoglm.version import __version__

    target = resolve_target()
    libraries = {name: _version(name) for name in (*_SERVING, *_BUILDING)}
    free = shutil.disk_usage(Path.cwd()).free
    problems = [
        f"{name} is missing, which serving needs: pip install open-autoglm"
        for name in _SERVING
        if libraries[name] is None
    ]
    problems += [
        f"{name} is missing, which building needs: pip install 'open-autoglm[build]'"
        for name in _BUILDING
        if libraries[name] is None
    ]
    if free < 2 * 1024**3:
        problems.append(f"only {free / 1024**3:.1f} GiB of disk are free here; a build wants 2")
    has_torch = libraries["torch"] is not None
    try:
        allocator = find_allocator(os.environ.get(VARIABLE, "")) or _USUAL_ALLOCATOR
    except ConfigurationError as error:
        allocator = "none"
        problems.append(str(error))
    return {
        "machine": {
            "open-autoglm": __version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "processor": target.processor,
            "cores": target.cores,
            "memory": f"{target.memory / 1024**3:.1f} GiB",
            "instruction sets": ", ".join(target.features) or "none that the engines use",
            "disk free": f"{free / 1024**3:.1f} GiB",
            "accelerator": _accelerator() if has_torch else "not known without torch",
            "allocator of trainings": allocator,
            "executable": sys.executable,
        },
        "libraries": libraries,
        "engine": _engine(),
        "problems": problems,
    }


def _engine() -> dict[str, Any]:
    """Which backend `auto` takes here for weights that any backend can compute, and why; and what each would run on."""
    from open_autoglm.engine.backends import BACKENDS, availability, choose_backend
    from open_autoglm.errors import EngineError

    found = {name: availability(name) for name in BACKENDS}
    try:
        choice = choose_backend()
        backend, reason = choice.name, f"{choice.detail}; {choice.passed_over}" if choice.passed_over else choice.detail
    except EngineError as error:
        backend, reason = None, str(error)
    return {
        "backend": backend,
        "reason": reason,
        "backends": {name: {"available": works, "detail": detail} for name, (works, detail) in found.items()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
