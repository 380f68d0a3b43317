# SPDX-License-Identifier: Apache-2.0
"""How much memory there is, and how much of it the KV cache should take."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from open_autoglm.errors import EngineError

KV_SHARE: Final = 0.25
"""The share of free memory that the KV cache takes at most, unless told otherwise."""

_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that can still be taken: what the kernel calls available, or what the control group leaves if less.

    Where neither can be read, 1 GiB.
    """
    found: list[int] = []
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit != "max":
            found.append(max(0, int(limit) - int((cgroup / "memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min(found) if found else 1024**3


def plan_kv_blocks(
    *, free_memory: int, bytes_per_block: int, block_size: int, max_sequences: int, max_positions: int
) -> int:
    """The number of KV blocks: what all sequences at full length need, or a quarter of the free memory if less.

    Raises EngineError when that is not even one block.
    """
    per_sequence = -(-max_positions // block_size)
    affordable = int(free_memory * KV_SHARE) // bytes_per_block
    if affordable < 1:
        raise EngineError(
            f"there are only {free_memory / 1e6:.0f} MB of free memory for the KV cache; stop other programs or use a "
            "smaller model"
        )
    return min(affordable, per_sequence * max_sequences)
