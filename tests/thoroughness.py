# SPDX-License-Identifier: Apache-2.0
"""How often a test repeats what only luck may bring to light: a few times in the gate, as often as it can bear before a
release."""

from __future__ import annotations

import os
from typing import Final

THOROUGH: Final = os.environ.get("OPEN_AUTOGLM_THOROUGH") == "1"
"""Whether `make thorough` runs the tests."""


def times(gate: int, thorough: int) -> int:
    """So many here, so many there."""
    return thorough if THOROUGH else gate
