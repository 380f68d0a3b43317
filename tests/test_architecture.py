# SPDX-License-Identifier: Apache-2.0
"""The arrows of docs/architecture.md, the licence line of each file, and what serving must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "open_autoglm"

# Room or module -> the rooms and modules it may know, besides those of `SHARED`, which are for everyone.
SHARED = {"errors", "python_path", "spelling", "storage", "version", "task", "words", "yaml_document"}
MAY_KNOW: dict[str, set[str]] = {
    "errors": set(),
    "python_path": set(),
    "version": set(),
    "storage": set(),
    "task": set(),
    "words": set(),
    "spelling": set(),
    "yaml_document": set(),
    "metrics": {"plugins"},
    "memory_allocator": set(),
    "targets": set(),
    "progress": set(),
    "chat": set(),
    "models": set(),
    "bundle": {"chat", "targets"},
    "data": {"chat", "plugins"},
    "engine": {"bundle", "chat", "targets", "models", "plugins"},
    "planning": {"bundle", "engine", "models", "targets"},
    "serve": {"engine", "bundle", "chat", "targets", "pipeline", "plugins"},
    "plugins": set(),
    "pipeline": {"engine", "memory_allocator", "plugins"},
    "train": {"data", "models", "targets"},
    "evaluate": {"bundle", "chat", "data", "engine", "metrics", "models", "progress", "train"},
    "search": {"data", "engine", "memory_allocator", "metrics", "models", "planning", "plugins", "targets", "train"},
    "compress": {"bundle", "chat", "data", "engine", "metrics", "models", "plugins", "progress", "train"},
    "export": {"bundle", "chat", "models"},
    "build_pipeline": {"data", "metrics", "models", "pipeline", "plugins", "targets"},
    "build_steps": {
        "bundle", "chat", "compress", "data", "engine", "evaluate", "metrics", "models", "pipeline", "planning",
        "progress", "search", "targets", "train",
    },
    "command_stages": {"build_pipeline", "bundle", "compress", "engine", "evaluate", "metrics", "pipeline"},
    "__init__": {"build_pipeline", "engine", "metrics", "serve"},
    "__main__": {"cli"},
    "cli": {
        "build_pipeline", "bundle", "chat", "compress", "data", "engine", "evaluate", "export", "memory_allocator",
        "metrics", "pipeline", "planning", "plugins", "search", "serve", "targets", "progress",
    },
}  # fmt: skip
TORCH_FREE = ("serve", "engine", "pipeline", "command_stages", "bundle", "chat", "data", "cli", "export")
TORCH_ALLOWED = {
    Path("engine/backends/torch_backend.py"),
    Path("cli/doctor.py"),
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_knows_only_whom_it_may(path: Path) -> None:
    room = room_of(path)
    known = {name.split(".")[1] for name in imported(path) if name.startswith("open_autoglm.")}
    modules = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir()}
    forbidden = (known & modules) - MAY_KNOW[room] - SHARED - {room}
    assert not forbidden, f"{room} must not import {sorted(forbidden)}"


def test_serving_and_reading_files_never_import_torch_themselves() -> None:
    for path in sources():
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] in TORCH_FREE and relative not in TORCH_ALLOWED:
            assert not any(name.split(".")[0] == "torch" for name in imported(path)), relative


@pytest.mark.parametrize(
    "module",
    [
        "open_autoglm",
        "open_autoglm.cli",
        "open_autoglm.engine",
        "open_autoglm.serve",
        "open_autoglm.bundle",
        "open_autoglm.pipeline",
        "open_autoglm.plugins.stages",
        "open_autoglm.data",
        "open_autoglm.chat.template",
    ],
)
def test_importing_loads_no_torch_and_prints_nothing(module: str) -> None:
    code = f"import {module}, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_every_source_file_names_its_licence() -> None:
    folders = [PACKAGE, ROOT / "tests", ROOT / "bench", ROOT / "examples"]
    files = [path for folder in folders for path in folder.rglob("*.py")] + [ROOT / "app.py", ROOT / "Makefile"]
    assert len(files) > 60
    for path in files:
        assert path.read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n"), path


def test_files_stay_small_enough_to_read() -> None:
    long = {
        str(p.relative_to(PACKAGE)): n
        for p in sources()
        if "_pb2" not in p.name and (n := len(p.read_text().splitlines())) > 480
    }
    assert not long
