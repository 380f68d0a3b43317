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
EPOCHS_OF_BLOCKS = """
import ctypes, random
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def block(size):
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    return address

generator, examples, levels = random.Random(0), [], []
for step in range(501):
    if step % 60 == 0:  # an epoch's examples take the place of the last one's
        later = [block(generator.choice((300, 2_000, 20_000, 70_000))) for _ in range(2_500)]
        for address in examples:
            libc.free(address)
        examples = later
    length, live = generator.uniform(0.5, 1.5), []
    for _ in range(80):  # a step's blocks are as large as its batch, and all of them are freed
        live.append(block(int(length * generator.choice((20, 64, 96, 100, 1_024, 3_072, 8_192)) * 1_024)))
        if generator.random() < 0.5:
            libc.free(live.pop(generator.randrange(len(live))))
    generator.shuffle(live)
    for address in live:
        libc.free(address)
    if step in (200, 500):
        levels.append(int(open("/proc/self/statm").read().split()[1]))
print(*levels)
"""

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


@needs_linux
def test_memory_that_is_kept_at_hand_is_used_again_and_does_not_grow_from_epoch_to_epoch() -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "MALLOC_CONF")}
    changes = allocator_environment(bare)
    if not changes:
        pytest.skip("neither jemalloc nor tcmalloc is here")
    done = subprocess.run(
        [sys.executable, "-S", "-c", EPOCHS_OF_BLOCKS],
        env={**bare, **changes},
        capture_output=True,
        text=True,
        check=True,
    )
    after_three_epochs, after_eight = (int(level) for level in done.stdout.split())
    assert after_eight < 1.15 * after_three_epochs, "pages; jemalloc without our settings comes to 1.36 times as many"


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
