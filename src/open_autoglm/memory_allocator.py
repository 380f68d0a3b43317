# SPDX-License-Identifier: Apache-2.0
"""Which memory allocator the processes that train use: jemalloc or tcmalloc, where one is on this machine.

A step of training a small model asks for some thousand blocks of a few MiB and gives them back. The C library's own
allocator returns such blocks to the system and fetches them again, page by page; the others keep them at hand. On two
cores a small model then trains 1.2 times as fast (docs/performance.md). An allocator can be put in the place of another
only when a process starts, so it is told by the environment of processes that are started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from open_autoglm.errors import ConfigurationError

VARIABLE: Final = "OPEN_AUTOGLM_ALLOCATOR"
"""`system`: the C library's, always. The path of a library, or its name as the linker knows it: that one."""

_SYSTEM: Final = "system"
_PRELOAD: Final = "LD_PRELOAD"
_JEMALLOC: Final = "libjemalloc.so.2"
_TCMALLOC: Final = "libtcmalloc_minimal.so.4"
_SETTINGS: Final = {
    # Memory that was given back stays at hand until the process ends, which is when the training does. A small block
    # may be cut from any large one: what jemalloc otherwise spares for large requests is not used up then and not
    # given back either, so a training would take more memory from epoch to epoch.
    "MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,lg_extent_max_active_fit:30",
    "TCMALLOC_RELEASE_RATE": "0",
}
_PROBE_SECONDS: Final = 10.0


def allocator_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables for the environment of a process that trains; empty where it is to use the C library's allocator.

    That is so on other systems than Linux, where no other allocator was found, and where somebody has said what to
    load before all else (`LD_PRELOAD`). environment: of this process, `os.environ` if None; what stands there already
    is not set again.
    """
    known = os.environ if environment is None else environment
    library = None if known.get(_PRELOAD) else find_allocator(known.get(VARIABLE, ""))
    if library is None:
        return {}
    return {_PRELOAD: library, **{name: value for name, value in _SETTINGS.items() if name not in known}}


@cache
def find_allocator(wanted: str = "") -> str | None:
    """The library that is loaded, as the linker is told; None for the C library's own.

    wanted: what `OPEN_AUTOGLM_ALLOCATOR` says. Without it the system's jemalloc is taken, the one that comes with Ray,
    or the system's tcmalloc: the first with which a process can be started.
    Raises ConfigurationError for one that is wanted and with which none can.
    """
    if not sys.platform.startswith("linux") or wanted == _SYSTEM:
        return None
    if wanted and not _works(wanted):
        raise ConfigurationError(
            f"{VARIABLE}: no process can be started with the library {wanted!r}; give the path of an allocator's "
            f"shared library, without spaces and colons, or '{_SYSTEM}' for the C library's own"
        )
    return wanted or next(filter(_works, (_JEMALLOC, *_of_ray(), _TCMALLOC)), None)


def _of_ray() -> tuple[str, ...]:
    """The jemalloc in Ray's package, which need not be imported for that."""
    spec = find_spec("ray")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    paths = (Path(place) / "core" / "libjemalloc.so" for place in places)
    return tuple(str(path) for path in paths if path.is_file())


def _works(library: str) -> bool:
    """Whether a process starts with it and hears of nothing: an allocator may expect pages of another size.

    A name of several libraries is refused: the linker takes spaces and colons for what separates them.
    """
    if any(character in library for character in " :\t\n\0"):
        return False
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", "bytearray(1 << 24)"],
            env={**os.environ, **_SETTINGS, _PRELOAD: library},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0 and not done.stderr
