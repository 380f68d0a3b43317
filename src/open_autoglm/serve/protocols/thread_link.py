# SPDX-License-Identifier: Apache-2.0
"""`ThreadLink`: what a plugin's thread has done on the event loop, for as long as its request is there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class RequestOver(BaseException):
    """The request that a thread works on is over: its client has gone, or its time is up.

    No Exception, so that a plugin which catches those, to try again or to write of them, ends nevertheless.
    """


class ThreadLink:
    """Between one thread, or several of one request, and the event loop. Made on the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_over = False

    def call(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Run a coroutine on the loop and wait for its result, in a thread. Raises what it raises, and RequestOver."""
        with self._lock:
            if self._is_over:
                raise RequestOver
            future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
            self._waiting.add(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RequestOver from None
        finally:
            with self._lock:
                self._waiting.discard(future)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin something that goes on beside the thread, at most until the request is over. On the loop only."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        """The request is over: cancel all that is going on, and wait until it has ended. On the loop only."""
        with self._lock:
            self._is_over = True
            waiting = list(self._waiting)
        for future in waiting:
            future.cancel()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tracked(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await work()
        finally:
            self._tasks.discard(task)
