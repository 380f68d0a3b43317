# SPDX-License-Identifier: Apache-2.0
"""The pages of the KV cache: which are free, and who holds the others. Bookkeeping only, no tensors."""

from __future__ import annotations

from collections.abc import Iterable

from open_autoglm.errors import EngineError


class BlockPool:
    """Numbered blocks of `block_size` tokens each.

    A block is free or held by one owner; giving back a block that is not held is an EngineError, because the cache
    of another request would be overwritten.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise EngineError(f"the KV cache needs at least one block of one token, not {num_blocks} x {block_size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._held: set[int] = set()

    @property
    def num_free(self) -> int:
        """How many blocks can be allocated now."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises EngineError if there are not as many free; then none is taken."""
        if count > len(self._free):
            raise EngineError(f"the KV cache has {len(self._free)} free blocks, {count} were asked for")
        if count <= 0:
            return []
        taken = self._free[-count:][::-1]
        del self._free[-count:]
        self._held.update(taken)
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Raises EngineError for a block that is not held."""
        for block in blocks:
            if block not in self._held:
                raise EngineError(f"internal error: KV block {block} was given back twice")
            self._held.remove(block)
            self._free.append(block)

    def check(self) -> None:
        """Raise EngineError unless every block is exactly once free or held."""
        if len(self._free) + len(self._held) != self.num_blocks or self._held.intersection(self._free):
            raise EngineError("internal error: the KV cache's books do not add up")
