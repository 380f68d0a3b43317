# SPDX-License-Identifier: Apache-2.0
"""How often Python looks for objects that only refer to each other, in processes that live long."""

from __future__ import annotations

import gc
from typing import Final

_YOUNG: Final = 10_000


def look_seldom() -> None:
    """Leave out what is there now, and look at the rest less often. Called once all is loaded.

    Requests and tokens leave next to nothing that counting references does not find, and to look for it at every 700th
    new object takes a quarter of a server's time while it streams.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, 10, 10)
