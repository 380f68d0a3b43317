# SPDX-License-Identifier: Apache-2.0
"""The allocator of processes that train: really loaded where it was found, and refused where it does not work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from open_autoglm.errors import ConfigurationError
from open_autoglm.memory_allocator import allocator_environment, find_allocator

LOADED = "print(open('/proc/self/maps').read())"

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux preloads libraries")


def libraries_of(environment: dict[str, str]) -> str:
    """What a Python process has loaded that is started so."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOADED], env=environment, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout


@needs_linux
def test_a_process_has_the_allocator_that_was_found() -> None:
    library = find_allocator()
    if library is None:
        pytest.skip("neither jemalloc nor tcmalloc is here")
    bare = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    changes = allocator_environment(bare)
    name = Path(library).name.partition(".so")[0]
    assert name in libraries_of({**bare, **changes})
    assert name not in libraries_of(bare)
    assert changes["LD_PRELOAD"] == library


def test_the_system_s_own_allocator_can_be_asked_for() -> None:
    assert allocator_environment({"OPEN_AUTOGLM_ALLOCATOR": "system"}) == {}


def test_what_somebody_else_loads_first_stays() -> None:
    assert allocator_environment({"LD_PRELOAD": "libfaketime.so.1"}) == {}


@needs_linux
def test_settings_that_are_there_stay() -> None:
    if find_allocator() is None:
        pytest.skip("neither jemalloc nor tcmalloc is here")
    assert "MALLOC_CONF" not in allocator_environment({"MALLOC_CONF": "narenas:1"})


@needs_linux
@pytest.mark.parametrize("library", ["/nowhere/lib.so", "no-such-library.so", __file__, "a.so b.so", "a.so:b.so"])
def test_a_library_that_cannot_be_loaded_is_named(library: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OPEN_AUTOGLM_ALLOCATOR: no process can be started with .*'system'"):
        allocator_environment({"OPEN_AUTOGLM_ALLOCATOR": library})


@needs_linux
def test_an_allocator_of_one_s_own_is_taken_by_its_path(tmp_path: Path) -> None:
    found = find_allocator()
    if found is None or "/" not in (path := _path_of(found)):
        pytest.skip("neither jemalloc nor tcmalloc is here")
    own = tmp_path / "own.so"
    own.symlink_to(path)
    assert allocator_environment({"OPEN_AUTOGLM_ALLOCATOR": str(own)})["LD_PRELOAD"] == str(own)


def _path_of(library: str) -> str:
    maps = libraries_of({**os.environ, "LD_PRELOAD": library})
    name = Path(library).name.partition(".so")[0]
    return next(line.split()[-1] for line in maps.splitlines() if name in line)
