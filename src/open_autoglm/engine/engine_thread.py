# SPDX-License-Identifier: Apache-2.0
"""The engine in a thread of its own, for programs that live in an asyncio loop."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

from open_autoglm.engine.engine import Engine, EngineStats
from open_autoglm.engine.request import Completion, Delta, Request
from open_autoglm.errors import EngineError, OpenAutoGLMError

MAX_QUEUED: Final = 1024
"""Requests that may be in work or waiting at one time."""


@dataclass(eq=False)
class _Reader:
    """Where the deltas of some requests go."""

    loop: asyncio.AbstractEventLoop
    deltas: asyncio.Queue[Delta | OpenAutoGLMError]


@dataclass(frozen=True)
class _Add:
    request: Request
    reader: _Reader


@dataclass(frozen=True)
class _Abort:
    request_id: str


class EngineThread:
    """Steps an engine for as long as it has work, and hands each request's deltas to the loop that asked.

    Requests are added and aborted between steps. A reader that goes away aborts its requests. When the engine itself
    breaks, all requests in it end with an error each, and it goes on with the next ones.
    """

    def __init__(self, engine: Engine, *, max_queued: int = MAX_QUEUED) -> None:
        self._engine, self._max_queued = engine, max_queued
        self._commands: queue.SimpleQueue[_Add | _Abort | None] = queue.SimpleQueue()
        self._readers: dict[str, _Reader] = {}
        self._num_open = 0
        self._lock = threading.Lock()
        self._stopping = False
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="open-autoglm-engine", daemon=True)

    @property
    def is_serving(self) -> bool:
        """Whether new requests are taken."""
        return self._thread.is_alive() and not self._stopping

    @property
    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return self._engine.stats

    @property
    def num_open(self) -> int:
        """Requests that somebody reads."""
        return self._num_open

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, give those in work some time, abort the rest, and end the thread."""
        with self._lock:
            self._stopping = True
            self._deadline = time.monotonic() + drain_seconds
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    async def stream(self, requests: Sequence[Request]) -> AsyncGenerator[Delta, None]:
        """Answer requests together and yield what each step adds; the last delta of each carries its completion.

        Leaving early aborts what is left within one step; wrap it in `contextlib.aclosing` so that leaving is seen.
        Raises RequestError for an invalid request, EngineError when the engine is full or stopping.
        """
        reader = _Reader(asyncio.get_running_loop(), asyncio.Queue())
        with self._lock:
            if not self.is_serving:
                raise EngineError("the engine is stopping; ask again later")
            if self._num_open + len(requests) > self._max_queued:
                raise EngineError(f"the engine has {self._num_open} requests in work already; ask again later")
            self._num_open += len(requests)
            for request in requests:
                self._commands.put(_Add(request, reader))
        unfinished = {request.id for request in requests}
        try:
            while unfinished:
                item = await reader.deltas.get()
                if isinstance(item, OpenAutoGLMError):
                    raise item
                if item.completion is not None:
                    unfinished.discard(item.request_id)
                yield item
        finally:
            for request_id in unfinished:
                self._commands.put(_Abort(request_id))
            with self._lock:
                self._num_open -= len(requests)

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together. Returns the completions in order. Raises as `stream` does."""
        completions: dict[str, Completion] = {}
        async for delta in self.stream(requests):
            if delta.completion is not None:
                completions[delta.request_id] = delta.completion
        return [completions[request.id] for request in requests]

    def _run(self) -> None:
        while True:
            if not self._obey(wait=not self._engine.has_unfinished) and not self._engine.has_unfinished:
                break
            if time.monotonic() > self._deadline:
                self._abort_all()
            try:
                deltas = self._engine.step()
            except Exception as error:  # noqa: BLE001 - a broken step must not end the service
                self._abort_all(EngineError(f"the engine failed ({type(error).__name__}: {error})"))
                continue
            self._deliver(deltas)
        self._refuse_rest()

    def _obey(self, *, wait: bool) -> bool:
        """Carry out what was asked since the last step; false once the thread should end when idle."""
        wait = wait and not self._stopping
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return not self._stopping
            wait = False
            if isinstance(command, _Add):
                self._add(command)
            elif isinstance(command, _Abort):
                self._engine.abort(command.request_id)
                self._readers.pop(command.request_id, None)

    def _add(self, command: _Add) -> None:
        self._readers[command.request.id] = command.reader
        try:
            self._engine.add_request(command.request)
        except OpenAutoGLMError as error:
            del self._readers[command.request.id]
            self._hand_over(command.reader, [error])

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        by_reader: dict[_Reader, list[Delta | OpenAutoGLMError]] = {}
        for delta in deltas:
            reader = self._readers.get(delta.request_id)
            if reader is None:
                continue
            by_reader.setdefault(reader, []).append(delta)
            if delta.completion is not None:
                del self._readers[delta.request_id]
        for reader, items in by_reader.items():
            self._hand_over(reader, items)

    def _hand_over(self, reader: _Reader, items: Sequence[Delta | OpenAutoGLMError]) -> None:
        def put() -> None:
            for item in items:
                reader.deltas.put_nowait(item)

        try:
            reader.loop.call_soon_threadsafe(put)
        except RuntimeError:  # the loop is closed: nobody reads any more
            for request_id in [name for name, owner in self._readers.items() if owner is reader]:
                self._engine.abort(request_id)
                del self._readers[request_id]

    def _abort_all(self, error: EngineError | None = None) -> None:
        readers = dict.fromkeys(self._readers.values())
        deltas = [self._engine.abort(request_id) for request_id in list(self._readers)]
        if error is None:
            self._deliver([delta for delta in deltas if delta is not None])
            return
        self._readers.clear()
        for reader in readers:
            self._hand_over(reader, [error])

    def _refuse_rest(self) -> None:
        """Answer what was asked between the decision to stop and the end of the thread."""
        while True:
            try:
                command = self._commands.get(block=False)
            except queue.Empty:
                return
            if isinstance(command, _Add):
                self._hand_over(command.reader, [EngineError("the engine is stopping; ask again later")])
