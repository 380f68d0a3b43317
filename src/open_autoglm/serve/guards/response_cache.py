# SPDX-License-Identifier: Apache-2.0
"""Answers kept for those who ask the same again: what a cache is, its keys, and one in memory."""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

_IGNORED: Final = frozenset(("user", "safety_identifier", "priority", "stream_options"))
"""Fields that change nothing in an answer that is not streamed."""


class ResponseCache(Protocol):
    """A store of answers by key. It may forget at any time, and never raises."""

    async def get(self, key: str) -> bytes | None:
        """What was put under the key, if it is still there."""
        ...

    async def put(self, key: str, answer: bytes) -> None:
        """Keep an answer."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


def cache_key(caller: str, path: str, model_digest: str, body: dict[str, Any]) -> str:
    """The name of an answer: equal for two requests exactly if they must get the same one.

    caller: the id of the API key, so that no answer crosses from one key to another. model_digest: of the weights and
    of how they are computed. body: of the request; the order of its fields means nothing.
    """
    meant = {name: value for name, value in body.items() if name not in _IGNORED and value is not None}
    content = json.dumps([caller, path, model_digest, meant], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def is_deterministic(body: dict[str, Any], *, greedy_by_default: bool) -> bool:
    """Whether the same request always gets the same answer: at temperature 0, or with a seed.

    Streams are not kept: who streams wants to see the answer come. greedy_by_default: what a request without a
    temperature gets.
    """
    if body.get("stream"):
        return False
    seed, temperature = body.get("seed"), body.get("temperature")
    if isinstance(seed, int) and not isinstance(seed, bool):
        return True
    if temperature is None:
        return greedy_by_default
    return not isinstance(temperature, bool) and temperature == 0


class MemoryCache:
    """The answers that were used last, within a number of bytes, each for a number of seconds."""

    def __init__(self, max_bytes: int, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._seconds, self._clock = max_bytes, seconds, clock
        self._answers: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes in use, keys included."""
        return self._size

    def resize(self, max_bytes: int, seconds: float) -> None:
        """New bounds; what lies beyond them goes."""
        self._max_bytes, self._seconds = max_bytes, seconds
        self._shrink()

    async def get(self, key: str) -> bytes | None:
        """What was put under the key, if it is still there."""
        found = self._answers.get(key)
        if found is None:
            return None
        if self._clock() - found[1] >= self._seconds:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return found[0]

    async def put(self, key: str, answer: bytes) -> None:
        """Keep an answer; one that is larger than the whole cache is not kept."""
        self._drop(key)
        if len(key) + len(answer) > self._max_bytes:
            return
        self._answers[key] = (answer, self._clock())
        self._size += len(key) + len(answer)
        self._shrink()

    async def close(self) -> None:
        """Nothing to let go."""

    def _drop(self, key: str) -> None:
        found = self._answers.pop(key, None)
        if found is not None:
            self._size -= len(key) + len(found[0])

    def _shrink(self) -> None:
        while self._size > self._max_bytes:
            self._drop(next(iter(self._answers)))
