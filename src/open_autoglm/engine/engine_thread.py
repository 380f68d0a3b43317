# SPDX-License-Identifier: Apache-2.0
"""The engine in a thread of its own, for programs that serve many callers at once."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from open_autoglm.engine.engine import Engine
from open_autoglm.engine.request import Completion, Delta, Request, SamplingParams
from open_autoglm.engine.stats import EngineStats
from open_autoglm.errors import EngineError, OpenAutoGLMError

if TYPE_CHECKING:
    import asyncio

MAX_QUEUED: Final = 1024
"""Requests that may be in work or waiting at one time."""

_PROBE: Final = "probe"

News = tuple[Any, Delta | OpenAutoGLMError]
"""What is new for a reader."""
Sink = Callable[[Sequence[News]], None]
"""Takes what a step brought for all of its readers, in the engine's thread. A RuntimeError says that nobody reads."""


class _Owner(NamedTuple):
    """Who reads a request, and by which sink."""

    reader: Any
    sink: Sink


@dataclass(frozen=True)
class _Add:
    request: Request
    owner: _Owner


@dataclass(frozen=True)
class _Abort:
    request_id: str


@dataclass(frozen=True)
class _LoopSink:
    """Hands news over to an asyncio loop: one wake-up for all readers of a step that live in it."""

    loop: asyncio.AbstractEventLoop

    def __call__(self, news: Sequence[News]) -> None:
        def put() -> None:
            for reader, item in news:
                reader.put_nowait(item)

        self.loop.call_soon_threadsafe(put)


class EngineThread:
    """Steps an engine for as long as it has work, and hands each request's deltas to whoever asked.

    Requests are added and aborted between steps. A reader that goes away aborts its requests. When the engine itself
    breaks, all requests in it end with an error each, and it goes on with the next ones. Until the thread ends the
    engine is its own: `complete_all`, so an `LLM` too, asks the thread.
    probe_seconds: after so long without work, and at first, compute one token to see that the engine still can.
    after_step: called in the engine's thread, once the sinks have been told what a step brought.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queued: int = MAX_QUEUED,
        probe_seconds: float | None = None,
        after_step: Callable[[], None] | None = None,
    ) -> None:
        self._engine, self._max_queued, self._probe_seconds = engine, max_queued, probe_seconds
        self._after_step = after_step
        self._commands: queue.SimpleQueue[_Add | _Abort | None] = queue.SimpleQueue()
        self._owners: dict[str, _Owner] = {}
        self._keepers: dict[str, Callable[[Delta], None]] = {}
        self._num_open = 0
        self._lock = threading.Lock()
        self._stopping = False
        self._deadline = float("inf")
        self._step_began: float | None = None
        self._last_success: float | None = None
        self._thread = threading.Thread(target=self._run, name="open-autoglm-engine", daemon=True)

    @property
    def is_serving(self) -> bool:
        """Whether new requests are taken."""
        return self._thread.is_alive() and not self._stopping

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return self._engine.stats

    @property
    def num_open(self) -> int:
        """Requests that are in work or waiting."""
        return self._num_open

    @property
    def step_seconds(self) -> float:
        """For how long the step in work has been computed; 0 between steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def seconds_since_step(self) -> float | None:
        """How long ago a step succeeded; nothing if none ever did."""
        last = self._last_success
        return None if last is None else time.monotonic() - last

    def start(self) -> None:
        """Start the thread, once nobody else steps the engine."""
        with self._lock:  # who asks meanwhile waits until it runs
            self._engine.hand_over(self.complete_waiting)
            self._thread.start()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, give those in work some time, abort the rest, and end the thread."""
        with self._lock:
            self._stopping = True
            self._deadline = time.monotonic() + drain_seconds
        self._commands.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, requests: Sequence[Request], reader: Any, sink: Sink) -> None:
        """Answer requests together; the sink gets each delta with the reader, the last one with its completion.

        Raises EngineError when the engine is full or stopping. What is wrong with a request reaches the sink.
        """
        with self._lock:
            if self.is_serving and self._num_open + len(requests) > self._max_queued:
                raise EngineError(f"the engine has {self._num_open} requests in work already; ask again later")
            self._queue(requests, _Owner(reader, sink))

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drop requests before the next step; the sink hears no more of them. Those that have ended are passed over."""
        for request_id in request_ids:
            self._commands.put(_Abort(request_id))

    def keep(self, request_ids: Iterable[str], keeper: Callable[[Delta], None]) -> None:
        """From now on what a step adds to these requests goes to `keeper` alone; their sink hears of their end.

        For sinks, so only in the engine's thread. While it hands tokens on, nothing is computed, and a step of a small
        model for 32 requests takes hardly longer than to tell a sink of each.
        """
        for request_id in request_ids:
            if request_id in self._owners:
                self._keepers[request_id] = keeper

    async def stream(self, requests: Sequence[Request]) -> AsyncGenerator[Delta, None]:
        """Answer requests together and yield what each step adds; the last delta of each carries its completion.

        Leaving early aborts what is left within one step; wrap it in `contextlib.aclosing` so that leaving is seen.
        Raises RequestError for an invalid request, EngineError when the engine is full or stopping.
        """
        import asyncio

        reader: asyncio.Queue[Delta | OpenAutoGLMError] = asyncio.Queue()
        self.submit(requests, reader, _LoopSink(asyncio.get_running_loop()))
        unfinished = {request.id for request in requests}
        try:
            while unfinished:
                item = await reader.get()
                if isinstance(item, OpenAutoGLMError):
                    raise item
                if item.completion is not None:
                    unfinished.discard(item.request_id)
                yield item
        finally:
            self.abort(unfinished)

    async def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together. Returns the completions in order. Raises as `stream` does."""
        completions: dict[str, Completion] = {}
        async for delta in self.stream(requests):
            if delta.completion is not None:
                completions[delta.request_id] = delta.completion
        return [completions[request.id] for request in requests]

    def complete_waiting(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer requests together, from another thread of this process, which waits; no limit holds for it.

        Returns the completions in order. Raises as `stream` does.
        """
        reader: queue.SimpleQueue[Delta | OpenAutoGLMError] = queue.SimpleQueue()

        def put(news: Sequence[News]) -> None:
            for _, item in news:
                reader.put(item)

        with self._lock:
            self._queue(requests, _Owner(reader, put))
        unfinished = {request.id for request in requests}
        completions: dict[str, Completion] = {}
        try:
            while unfinished:
                item = reader.get()
                if isinstance(item, OpenAutoGLMError):
                    raise item
                if item.completion is not None:
                    unfinished.discard(item.request_id)
                    completions[item.request_id] = item.completion
        finally:
            self.abort(unfinished)
        return [completions[request.id] for request in requests]

    def _queue(self, requests: Sequence[Request], owner: _Owner) -> None:
        """With the lock held."""
        if not self.is_serving:
            raise EngineError("the engine is stopping; ask again later")
        self._num_open += len(requests)
        for request in requests:
            self._commands.put(_Add(request, owner))

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            # Whoever waits must hear of it; nobody would end their waiting otherwise. What is asked from now on is
            # refused, since the engine's state is not known.
            self._give_up(EngineError(f"the engine's thread failed ({type(error).__name__}: {error})"))
            raise
        else:
            self._engine.hand_over(None)
        finally:
            self._refuse_rest()

    def _work(self) -> None:
        if self._probe_seconds is not None:
            self._probe()
        while True:
            if not self._obey(wait=not self._engine.has_unfinished) and not self._engine.has_unfinished:
                break
            if time.monotonic() > self._deadline:
                self._abort_all()
            self._step()

    def _step(self) -> None:
        before = self._engine.num_steps
        self._step_began = time.monotonic()
        try:
            deltas = self._engine.step()
        except Exception as error:  # noqa: BLE001 - a broken step must not end the service
            self._abort_all(EngineError(f"the engine failed ({type(error).__name__}: {error})"))
            return
        finally:
            self._step_began = None
        if self._engine.num_steps > before and not (deltas and all(map(_is_failure, deltas))):
            self._last_success = time.monotonic()
        self._deliver(deltas)

    def _obey(self, *, wait: bool) -> bool:
        """Carry out what was asked since the last step; false once the thread should end when idle."""
        wait = wait and not self._stopping
        while True:
            if not wait and self._commands.empty():
                return not self._stopping
            try:
                command = self._commands.get(block=wait, timeout=self._probe_seconds)
            except queue.Empty:
                if wait:
                    self._probe()
                return not self._stopping
            wait = False
            if isinstance(command, _Add):
                self._add(command)
            elif isinstance(command, _Abort) and command.request_id in self._owners:
                self._forget(command.request_id)
                self._engine.abort(command.request_id)

    def _add(self, command: _Add) -> None:
        try:
            self._engine.add_request(command.request)
        except OpenAutoGLMError as error:
            with self._lock:
                self._num_open -= 1
            self._hand_over(command.owner.sink, [(command.owner.reader, error)])
        else:
            self._owners[command.request.id] = command.owner

    def _probe(self) -> None:
        """One token that nobody reads."""
        self._engine.add_request(Request(_PROBE, (0,), SamplingParams(max_tokens=1, ignore_eos=True)))

    def _forget(self, request_id: str) -> None:
        del self._owners[request_id]
        self._keepers.pop(request_id, None)
        with self._lock:
            self._num_open -= 1

    def _deliver(self, deltas: Sequence[Delta]) -> None:
        by_sink: dict[Sink, list[News]] = {}
        keepers = self._keepers
        for delta in deltas:
            if delta.completion is None and (keeper := keepers.get(delta.request_id)) is not None:
                keeper(delta)
                continue
            owner = self._owners.get(delta.request_id)
            if owner is None:
                continue
            by_sink.setdefault(owner.sink, []).append((owner.reader, delta))
            if delta.completion is not None:
                self._forget(delta.request_id)
        for sink, news in by_sink.items():
            self._hand_over(sink, news)
        if self._after_step is not None:
            self._after_step()

    def _hand_over(self, sink: Sink, news: Sequence[News]) -> None:
        try:
            sink(news)
        except RuntimeError:  # the loop is closed: nobody reads any more
            for request_id in [name for name, owner in self._owners.items() if owner.sink == sink]:
                self._forget(request_id)
                self._engine.abort(request_id)

    def _abort_all(self, error: EngineError | None = None) -> None:
        deltas = [self._engine.abort(request_id) for request_id in [*self._owners, _PROBE]]
        if error is None:
            self._deliver([delta for delta in deltas if delta is not None])
            return
        self._tell_all(error)

    def _give_up(self, error: EngineError) -> None:
        """End with an error for all; the engine, whose state is not known, is left alone."""
        with self._lock:
            self._stopping = True
        self._tell_all(error)

    def _tell_all(self, error: EngineError) -> None:
        owners = list(dict.fromkeys(self._owners.values()))
        for request_id in list(self._owners):
            self._forget(request_id)
        for owner in owners:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                owner.sink([(owner.reader, error)])

    def _refuse_rest(self) -> None:
        """Answer what was asked between the decision to stop and the end of the thread."""
        while True:
            try:
                command = self._commands.get(block=False)
            except queue.Empty:
                return
            if isinstance(command, _Add):
                with self._lock:
                    self._num_open -= 1
                error = EngineError("the engine is stopping; ask again later")
                self._hand_over(command.owner.sink, [(command.owner.reader, error)])


def _is_failure(delta: Delta) -> bool:
    return delta.completion is not None and delta.completion.finish_reason == "error"
