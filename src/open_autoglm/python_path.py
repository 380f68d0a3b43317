# SPDX-License-Identifier: Apache-2.0
"""Where a Python process that we start finds its modules: where this one does, plugins included."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

PYTHON_PATH: Final = "PYTHONPATH"
"""The variable in which Python expects it."""


def python_path() -> str:
    """This process's `sys.path`, each folder absolute, so that a child that starts elsewhere reads it the same."""
    return os.pathsep.join(Path(entry or ".").resolve().as_posix() for entry in sys.path)
