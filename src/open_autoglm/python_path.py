# SPDX-License-Identifier: Apache-2.0
"""Where a Python process that we start finds its modules: where this one does, plugins included."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PYTHON_PATH: Final = "PYTHONPATH"
"""The variable in which Python expects it."""


def python_folders() -> list[str]:
    """This process's `sys.path`, each folder absolute, so that one that runs elsewhere reads it the same."""
    return [Path(entry or ".").resolve().as_posix() for entry in sys.path]


def python_path() -> str:
    """The same for `PYTHONPATH` of a process that is started."""
    return os.pathsep.join(python_folders())


def extend_python_path(folders: Iterable[str]) -> None:
    """Let this process, which runs already, look in those of another, too, behind its own."""
    sys.path.extend(folder for folder in folders if folder not in sys.path)
