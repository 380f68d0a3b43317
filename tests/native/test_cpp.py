# SPDX-License-Identifier: Apache-2.0
"""The native engine's C++ tests: plain, under the sanitizers, and for 64-bit ARM in an emulator.

The last three take minutes to compile. `make sanitize` runs them and writes down which sources they passed on; while
those stay as they are, byte for byte, `make test` does not run them again.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build" / "cpp_tests"  # kept, so that only what has changed is compiled again
CHECKED = Path(__file__).with_name("checked_sources.json")
ASKED = os.environ.get("OPEN_AUTOGLM_SANITIZE") == "1"
ARM_COMPILER, ARM_EMULATOR, ARM_LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"


def _tool(name: str) -> str:
    """A build tool of this environment, or of the system."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (pip install -e '.[dev]')")
    return found


def _compiler() -> str:
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if not found:
        pytest.skip("there is no C++ compiler here")
    return found


def _outcome(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
    )


def _run(command: Sequence[str], seconds: float) -> str:
    done = _outcome(command, seconds)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-8000:]}"
    return done.stdout


def _build(kind: str, *options: str, compiler: str) -> Path:
    folder = BUILDS / kind
    ninja = _tool("ninja")
    _run(
        [
            _tool("cmake"),
            *("-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
            *(f"-DCMAKE_CXX_COMPILER={compiler}", "-DAUTOGLM_TESTS=ON", *options),
        ],
        600,
    )
    _run([ninja, "-C", str(folder), "-j", str(min(4, len(os.sched_getaffinity(0))))], 1200)
    return folder / "tests" / "engine_tests"


def _installed_engine() -> list[str]:
    """Link the library that installing the package left in the source tree: the very code that is served.

    Where there is none, or a source is newer than it, the tests compile their own.
    """
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".txt")]
    changed = max(path.stat().st_mtime for path in sources if "tests" not in path.parts[-2:])
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    built = [path for path in (ROOT / "build").glob(f"{version}-*/libengine.a") if path.stat().st_mtime > changed]
    return [f"-DAUTOGLM_BUILT_ENGINE={built[0] if built else ''}"]


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".txt")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read_checked() -> dict[str, str]:
    return json.loads(CHECKED.read_text(encoding="utf-8")) if CHECKED.exists() else {}


def _skip_where_checked(kind: str) -> None:
    if not ASKED and _read_checked().get(kind) == _digest_of_sources():
        pytest.skip("these very sources passed in `make sanitize`")


def _note_checked(kind: str) -> None:
    if ASKED:
        CHECKED.write_text(json.dumps({**_read_checked(), kind: _digest_of_sources()}, indent=2) + "\n")


def _needs_sanitizer(compiler: str, sanitizer: str, folder: Path) -> None:
    source = folder / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    command = [compiler, f"-fsanitize={sanitizer}", str(source), "-o", str(folder / "empty")]
    if _outcome(command, 60).returncode:
        pytest.skip(f"{compiler} cannot build with -fsanitize={sanitizer} here")


@pytest.mark.timeout(1800)
def test_plain() -> None:
    options = ("-DCMAKE_BUILD_TYPE=Release", *_installed_engine())
    output = _run([str(_build("plain", *options, compiler=_compiler()))], 1500)
    assert "table portable" in output
    if platform.machine() == "x86_64" and "table AVX2" in output and "(emulated)" not in output:
        pytest.skip("passed, but without AVX-512 and AVX-VNNI: SIMDe is not installed (Debian: libsimde-dev)")


@pytest.mark.timeout(1800)
def test_address_and_undefined_behaviour(tmp_path: Path) -> None:
    _skip_where_checked("address")
    compiler = _compiler()
    _needs_sanitizer(compiler, "address,undefined", tmp_path)
    options = ("-DAUTOGLM_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=None")
    _run([str(_build("address", *options, compiler=compiler))], 1500)
    _note_checked("address")


@pytest.mark.timeout(1800)
def test_threads(tmp_path: Path) -> None:
    _skip_where_checked("threads")
    compiler = _compiler()
    _needs_sanitizer(compiler, "thread", tmp_path)
    tests = _build("thread", "-DAUTOGLM_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=None", compiler=compiler)
    command = [str(tests), "team", "model", "packing_does_not_depend"]  # those that have threads
    if "unexpected memory mapping" in _outcome([*command[:1], "no such test"], 60).stdout:
        # The kernel puts things where older sanitizers do not expect them, unless it is told not to.
        command = ["setarch", "-R", *command]
        if not shutil.which("setarch") or _outcome(["setarch", "-R", "true"], 60).returncode:
            pytest.skip("the thread sanitizer needs fixed addresses, which setarch -R may not set here")
    _run(command, 1500)
    _note_checked("threads")


@pytest.mark.timeout(1800)
def test_arm() -> None:
    if platform.machine() == "aarch64":
        pytest.skip("the plain tests are those of this processor")
    _skip_where_checked("arm")
    if not shutil.which(ARM_COMPILER) or not shutil.which(ARM_EMULATOR):
        pytest.skip(f"{ARM_COMPILER} or {ARM_EMULATOR} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    options = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_BUILD_TYPE=Release")
    tests = _build("arm", *options, "-DAUTOGLM_SMALL_TESTS=ON", compiler=ARM_COMPILER)
    assert "table NEON" in _run([ARM_EMULATOR, "-L", ARM_LIBRARIES, str(tests)], 1500)
    _note_checked("arm")
