# SPDX-License-Identifier: Apache-2.0
"""The machine that a benchmark ran on, and what it can do at most, measured in the same run."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import open_autoglm
from open_autoglm.targets import last_level_cache, resolve_target

_SOURCE = Path(__file__).resolve().parents[1] / "csrc" / "machine_limits.cpp"
_BUFFER_BYTES = 512 << 20

RATE_OF_WEIGHTS = {"int4": "int4_gops", "int8": "int8_gops", "bfloat16": "bf16_gops", "float32": "f32_gops"}
"""Which of the limits bounds the products of a model with such weights."""


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge a figure: processor, cores, load of other programs, versions, commit, date."""
    return {
        **resolve_target().to_dict(),
        "last_level_cache": last_level_cache(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "open_autoglm": open_autoglm.__version__,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def command_line() -> str:
    """The command that runs, as a reader would repeat it: with names for this machine's paths, without --json."""
    words: list[str] = []
    for word in sys.argv[1:]:
        if words and words[-1] == "--model-folder":
            words.pop()
        elif word != "--json":
            words.append(Path(word).name if "/" in word else word)
    return " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *words])


def pin_to(threads: int) -> None:
    """Keep this process and its children on the first `threads` processors that it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class LimitsProbe:
    """Measures the machine's limits now and then, and keeps the best of each, since other programs only subtract.

    The loops are those of csrc/machine_limits.cpp, compiled here into a program of their own, so that they run alike
    for any backend; without a compiler, those in the native extension. With neither the limits are empty and shares
    are left out, which `reason` explains.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._folder = tempfile.TemporaryDirectory()
        self._program = Path(self._folder.name) / "machine_limits"
        self.limits: dict[str, Any] = {}
        self.reason = self._compile()

    def measure(self, seconds: float = 1.0) -> None:
        """Spend about five times `seconds`."""
        if self.reason:
            return
        for name, value in self._measure(seconds).items():
            known = self.limits.get(name)
            self.limits[name] = max(known, value) if isinstance(known, float) else value

    def _measure(self, seconds: float) -> dict[str, Any]:
        if self._program.is_file():
            command = [str(self._program), str(self._threads), str(_BUFFER_BYTES), str(seconds)]
            return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        from open_autoglm.engine import _native

        return {
            "threads": self._threads,
            "read_gb_per_s": _native.measure_read_bandwidth(self._threads, _BUFFER_BYTES, seconds),
            "int8_gops": _native.measure_int8_rate(self._threads, seconds),
            "int4_gops": _native.measure_int4_rate(self._threads, seconds),
            "bf16_gops": _native.measure_bfloat16_rate(self._threads, seconds),
            "f32_gops": _native.measure_float32_rate(self._threads, seconds),
        }

    def _compile(self) -> str:
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            if importlib.util.find_spec("open_autoglm.engine._native"):
                return ""
            return "neither a C++ compiler nor the native extension"
        flags = ["-std=c++20", "-O2", "-pthread", "-DMACHINE_LIMITS_MAIN"]
        done = subprocess.run(
            [compiler, *flags, str(_SOURCE), "-o", str(self._program)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return "csrc/machine_limits.cpp does not compile here"
        return ""


def resident_bytes(pid: int | str = "self", field: str = "VmRSS") -> int:
    """Memory of a process as the kernel counts it: `VmRSS` now, `VmHWM` at most, `RssAnon` not backed by files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True
    )
    return done.stdout.strip() or None


def proportional_bytes(pid: int) -> int:
    """Bytes that a process and those it started take, pages that several share counted once in all."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own_bytes(pid) + sum(proportional_bytes(int(child)) for child in children)


def own_bytes(pid: int) -> int:
    """Bytes that a process takes itself, what it shares with others by its part."""
    return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) * 1024
