# SPDX-License-Identifier: Apache-2.0
"""Tries plugins in a process of their own with a time limit, and remembers what came of it by their content."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from open_autoglm.errors import ConfigurationError, StorageError
from open_autoglm.plugins.discovery import Plugin
from open_autoglm.storage import read_json, write_json

PROBE_SECONDS: Final = 20.0
_MOST_ANSWER: Final = 1 << 20
_LONGEST_FAULT: Final = 500


@dataclass(frozen=True)
class ProbeResult:
    """fault: what is wrong with the plugin, None for nothing. tried: what it was seen to do right. suffixes: of the
    files that a reader reads.
    """

    fault: str | None
    tried: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()


def cache_folder() -> Path:
    """Where results are remembered: OPEN_AUTOGLM_CACHE, or where XDG has caches."""
    if chosen := os.environ.get("OPEN_AUTOGLM_CACHE"):
        return Path(chosen) / "plugins"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "open-autoglm" / "plugins"


def known_result(plugin: Plugin, *, seconds: float = PROBE_SECONDS) -> ProbeResult:
    """Whether the plugin loads and has its interface: from memory if its content was tried before."""
    path = cache_folder() / f"{plugin.digest}.json"
    try:
        known = read_json(path)
        return ProbeResult(known["fault"], tuple(known["tried"]), tuple(known["suffixes"]))
    except (StorageError, KeyError, TypeError):
        return remember(plugin, probe(plugin, seconds=seconds))


def remember(plugin: Plugin, result: ProbeResult) -> ProbeResult:
    """Keep a result for the next time; a cache that cannot be written costs time and nothing else."""
    with contextlib.suppress(StorageError):
        write_json(cache_folder() / f"{plugin.digest}.json", asdict(result))
    return result


def probe(plugin: Plugin, *, behaviour: bool = False, seconds: float = PROBE_SECONDS) -> ProbeResult:
    """Load the plugin in a child process and look at it; `behaviour`: and try what it does.

    seconds: after which it is stopped, with all that is in its process group.
    Raises ConfigurationError if no process can be started.
    """
    if plugin.fault is not None:
        return ProbeResult(plugin.fault)
    read_end, write_end = os.pipe()
    values = asdict(plugin)
    values["folder"] = None if plugin.folder is None else str(plugin.folder)
    request = {
        "plugin": {**values, "check_config": None},
        "check_config": plugin.check_config,
        "behaviour": behaviour,
    }
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "open_autoglm.plugins.probe_process", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(write_end,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(read_end)
        raise ConfigurationError(f"a plugin cannot be tried: {error.strerror}") from None
    finally:
        os.close(write_end)
    try:
        return _answer(child, read_end, json.dumps(request).encode(), seconds)
    finally:
        os.close(read_end)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(child: subprocess.Popen[bytes], read_end: int, request: bytes, seconds: float) -> ProbeResult:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(request)
        child.stdin.close()
    deadline, data = time.monotonic() + seconds, b""
    while len(data) < _MOST_ANSWER:
        if not select.select([read_end], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return ProbeResult(f"it did not answer within {seconds:g} s and was stopped")
        part = os.read(read_end, 65536)
        if not part:
            break
        data += part
    try:
        answer = json.loads(data)
        fault, tried = answer["fault"], tuple(map(str, answer["tried"]))
        suffixes = tuple(str(suffix).lower() for suffix in answer["suffixes"])
    except (ValueError, KeyError, TypeError):
        code = child.wait()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return ProbeResult(f"its process ended with {ended} and said nothing")
    return ProbeResult(None if fault is None else str(fault)[:_LONGEST_FAULT], tried, suffixes)
