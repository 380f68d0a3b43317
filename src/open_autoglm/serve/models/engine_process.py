# SPDX-License-Identifier: Apache-2.0
"""`EngineProcess`: a model whose engine runs in a process of its own, watched, and started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from open_autoglm.engine.orders import ChatOrder, ModelCard, Order, Piece, Question, Reply
from open_autoglm.engine.stats import READY_SECONDS, EngineStats, ModelState
from open_autoglm.engine.wire import Ask, Failed, FromWorker, Leave, Loaded, Put, Replied, Step
from open_autoglm.errors import ConfigurationError, EngineError, OpenAutoGLMError
from open_autoglm.serve.models.engine_link import EngineLink
from open_autoglm.serve.models.latency import Latency
from open_autoglm.serve.models.open_order import OpenOrder
from open_autoglm.serve.models.worker_process import ModelSource, WorkerProcess, memory_of

_WATCH_SECONDS: Final = 0.25
_LARGE_BYTES: Final = 256 * 1024
_LARGE_ORDERS: Final = 16
_NO_STATS: Final = EngineStats(0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class EngineWatch:
    """How patient a server is with the process of an engine. All times are seconds.

    start_seconds: to load the model. silence_seconds: a process that says nothing for so long is ended.
    step_seconds: so is one whose step takes longer. most_failures: in a row, until it stays down; a request that was
    answered ends the row, and so does a life of `stable_seconds`. backoff_seconds: before the second start in a row,
    doubled each time up to `longest_backoff`, and varied by half.
    Raises ConfigurationError for a value that cannot be.
    """

    start_seconds: float = 600.0
    silence_seconds: float = 5.0
    step_seconds: float = 120.0
    most_failures: int = 6
    stable_seconds: float = 60.0
    backoff_seconds: float = 0.5
    longest_backoff: float = 30.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise ConfigurationError(f"the engine's {name} must be more than 0, not {value}")

    def backoff(self, failures: int) -> float:
        """How long to wait after so many failures in a row; nothing after the first."""
        if failures < 2:
            return 0.0
        longest = min(self.longest_backoff, self.backoff_seconds * 2.0 ** min(failures - 2, 30))
        return longest * random.uniform(0.5, 1.0)


class EngineProcess:
    """A `ModelClient` over a process that runs the engine.

    When the process dies, or is ended because it is stuck, every open order ends with an EngineError, none is tried
    again by itself, and the model is loaded again. label: for the log. process: one that was started already.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        max_queued: int,
        label: str | None = None,
        watch: EngineWatch | None = None,
        process: WorkerProcess | None = None,
    ) -> None:
        self._source, self._max_queued, self._process = source, max_queued, process
        self._label, self._watch = label or source.model, watch or EngineWatch()
        self._state: ModelState = "not loaded"
        self._reason: str | None = None
        self._card: ModelCard | None = None
        self._link: EngineLink | None = None
        self._orders: dict[int, OpenOrder] = {}
        self._questions: dict[int, asyncio.Future[Reply]] = {}
        self._numbers = itertools.count(1)
        self._num_restarts = 0
        self._num_open = 0
        self._large = asyncio.Semaphore(_LARGE_ORDERS)
        self._latency = Latency()
        self._answered = False
        self._stopping = False
        self._deadline = float("inf")
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def state(self) -> ModelState:
        """What the model does at present."""
        return "stopping" if self._stopping else self._state

    @property
    def reason(self) -> str | None:
        """Why it is not there, for people."""
        return self._reason

    @property
    def card(self) -> ModelCard:
        """What the model is. Raises EngineError before it was loaded once."""
        if self._card is None:
            raise EngineError(f"the model {self._label} was not loaded yet")
        return self._card

    @property
    def is_serving(self) -> bool:
        """Whether new orders are taken."""
        return self.state == "ready"

    @property
    def is_ready(self) -> bool:
        """Whether a step of the engine succeeded within the last seconds."""
        link = self._link
        if not self.is_serving or link is None or link.beat is None or link.beat.seconds_since_step is None:
            return False
        silence = time.monotonic() - link.last_heard
        return link.beat.seconds_since_step + silence < READY_SECONDS

    @property
    def stats(self) -> EngineStats:
        """Where the engine stood when it was heard last; zeros while there is none."""
        return _NO_STATS if self._link is None or self._link.beat is None else self._link.beat.stats

    @property
    def num_open(self) -> int:
        """Choices that somebody waits for."""
        return self._num_open

    @property
    def num_restarts(self) -> int:
        """How often the process was started again after it had ended."""
        return self._num_restarts

    @property
    def latency(self) -> Latency:
        """How long answers took of late."""
        return self._latency

    @property
    def memory(self) -> int:
        """Bytes that the process takes."""
        return 0 if self._link is None else memory_of(self._link.process.pid)

    @property
    def pid(self) -> int | None:
        """The id of the process; nothing while there is none."""
        return None if self._link is None else self._link.process.pid

    async def start(self) -> None:
        """Load the model. Raises what loading it raises, and EngineError when the process dies or takes too long."""
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(loaded))
        try:
            await loaded
        except BaseException:
            await self.stop()
            raise

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more orders, give those in work some time, end the rest with an error, and end the process.

        Called again it may shorten the time.
        """
        self._stopping = True
        loop = asyncio.get_running_loop()
        self._deadline = min(self._deadline, loop.time() + drain_seconds)
        while (self._orders or self._questions) and loop.time() < self._deadline:  # noqa: ASYNC110 - the end may move
            await asyncio.sleep(0.02)
        self._fail_all(EngineError("the server is stopping; ask again later"))
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        if self._process is not None:  # it was never used
            await asyncio.to_thread(self._process.close)
            self._process = None

    def stream(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """Answer an order; yields what is new. Leaving early aborts what is left within one step.

        Wrap it in `contextlib.aclosing` so that leaving is seen. Raises RequestError for an invalid order, EngineError
        when the engine dies, is full or is not there.
        """
        return self._run(order, whole=False)

    async def answer(self, order: Order) -> list[Piece]:
        """Answer an order whole: one piece for each choice, in order. Raises as `stream` does."""
        async with contextlib.aclosing(self._run(order, whole=True)) as pieces:
            async for some in pieces:
                return sorted(some, key=lambda piece: piece.choice)
        raise EngineError("the engine gave no answer")

    async def ask(self, question: Question) -> Reply:
        """The reply to a question. Raises RequestError for an invalid one, EngineError as `stream` does."""
        link = self._ready_link(1)
        number = next(self._numbers)
        future = self._questions[number] = asyncio.get_running_loop().create_future()
        self._num_open += 1
        try:
            data = link.encode(Put(number, question))
            async with self._large if len(data) > _LARGE_BYTES else contextlib.nullcontext():
                link.write(data)
                return await future
        finally:
            self._num_open -= 1
            del self._questions[number]
            if not future.done() or future.cancelled():
                link.send(Leave(number))

    async def _run(self, order: Order, *, whole: bool) -> AsyncGenerator[list[Piece], None]:
        num_choices = order.n * (1 if isinstance(order, ChatOrder) else len(order.prompts))
        link = self._ready_link(num_choices)
        number, opened = next(self._numbers), OpenOrder(num_choices, whole=whole)
        self._orders[number] = opened
        self._num_open += num_choices
        held: asyncio.Semaphore | None = None
        try:
            data = link.encode(Ask(number, order, whole))
            if len(data) > _LARGE_BYTES:  # so that orders that wait for the engine's desk take a bounded memory
                await self._large.acquire()
                held = self._large
            began = asyncio.get_running_loop().time()
            link.write(data)
            del data
            first: float | None = None
            num_tokens = 0
            while pieces := await opened.read():
                now = asyncio.get_running_loop().time()
                if first is None and not whole:
                    first = now
                    self._latency = self._latency.with_first(now - began)
                else:
                    num_tokens += sum(piece.num_tokens for piece in pieces)
                if held is not None:
                    held.release()
                    held = None
                if opened.is_done:
                    self._answered = True
                    self._latency = self._latency.with_rest(now - (began if first is None else first), num_tokens)
                yield pieces
        finally:
            if held is not None:
                held.release()
            self._num_open -= num_choices
            del self._orders[number]
            if not opened.is_done:
                link.send(Leave(number))

    def _ready_link(self, num_choices: int) -> EngineLink:
        if self._stopping:
            raise EngineError("the server is stopping; ask again later")
        if self._link is None or self._state != "ready":
            why = "is being loaded; ask again later"
            if self._state == "failed":
                why = f"is down: {self._reason}"
            elif self._state == "restarting":
                why = "is being loaded again, since its engine failed; ask again later"
            raise EngineError(f"the model {why}")
        if self._num_open + num_choices > self._max_queued:
            raise EngineError(f"the engine has {self._num_open} requests in work already; ask again later")
        return self._link

    def _take(self, message: FromWorker) -> None:
        if isinstance(message, Step):
            for part in message.parts:
                if (order := self._orders.get(part.number)) is not None:
                    order.add(part.pieces, is_last=part.is_last)
        elif isinstance(message, Failed):
            if (order := self._orders.get(message.number)) is not None:
                order.fail(message.fault.to_error())
            elif (future := self._questions.get(message.number)) is not None and not future.done():
                future.set_exception(message.fault.to_error())
        elif isinstance(message, Replied):
            future = self._questions.get(message.number)
            if future is not None and not future.done():
                future.set_result(message.reply)

    def _fail_all(self, error: EngineError) -> None:
        for order in self._orders.values():
            if not order.is_done:
                order.fail(error)
        for future in self._questions.values():
            if not future.done():
                future.set_exception(error)

    async def _supervise(self, loaded: asyncio.Future[None]) -> None:
        """Live life after life. loaded: is told how the first began."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began, self._answered = loop.time(), False
            try:
                reason = await self._live(loaded)
            except (OpenAutoGLMError, OSError) as fault:
                error = fault
                if isinstance(fault, OSError):
                    error = EngineError(f"the system does not let the engine start: {fault.strerror or fault}")
                if not loaded.done():
                    self._state, self._reason = "failed", str(error)
                    loaded.set_exception(error)
                    return
                reason = str(error)
            if self._answered or loop.time() - began > self._watch.stable_seconds:
                failures = 0
            failures += 1
            if failures >= self._watch.most_failures:
                self._state = "failed"
                self._reason = f"its engine failed {failures} times in a row; the last time it {reason}"
                return
            self._state, self._reason = "restarting", f"its engine {reason}"
            await asyncio.sleep(self._watch.backoff(failures))
            self._num_restarts += 1

    async def _live(self, loaded: asyncio.Future[None]) -> str:
        """Start a process and watch it to its end. Returns how it ended; raises what loading the model raises."""
        if not loaded.done():
            self._state = "loading"
        process, self._process = self._process or WorkerProcess(self._source, self._max_queued), None
        link = EngineLink(process, self._take, self._label)
        try:
            await self._load(link)
            self._link, self._state, self._reason = link, "ready", None
            if not loaded.done():
                loaded.set_result(None)
            await self._watch_over(link)
        finally:
            self._link = None
            if self._state == "ready":
                self._state = "restarting"
            self._fail_all(EngineError("the engine failed while it worked on this request, which was not tried again"))
            how = await asyncio.shield(asyncio.ensure_future(link.end()))
        return how

    async def _load(self, link: EngineLink) -> None:
        """Have the model loaded and a first token computed. Raises what loading raises."""
        await link.connect()
        done, _ = await asyncio.wait({link.first}, timeout=self._watch.start_seconds)
        if not done:
            link.kill(f"did not load the model within {self._watch.start_seconds:g} seconds")
        if not done or link.first.cancelled():
            how = await link.end()
            raise EngineError(f"the engine cannot start: its process {how}")
        first = link.first.result()
        if not isinstance(first, Loaded):
            raise first.fault.to_error()
        self._card = first.card
        with contextlib.suppress(TimeoutError):  # a model that cannot compute is there, and not ready
            async with asyncio.timeout(self._watch.silence_seconds):
                while link.beat is None and not link.lost.is_set():  # noqa: ASYNC110 - either of two
                    await asyncio.sleep(0.002)

    async def _watch_over(self, link: EngineLink) -> None:
        """Return once the process is gone, or was ended because it does not answer or its step does not end."""
        patience = self._watch
        link.last_heard = time.monotonic()
        while not link.lost.is_set():
            before = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS):
                    await link.lost.wait()
            now = time.monotonic()
            if now - before > _WATCH_SECONDS + patience.silence_seconds / 2:
                link.last_heard = now  # it is we who were held up: hear first what was said meanwhile
            elif now - link.last_heard > patience.silence_seconds:
                link.kill(f"did not answer for {patience.silence_seconds:g} seconds and was ended")
                return
            elif link.beat is not None and link.beat.step_seconds > patience.step_seconds:
                link.kill(f"was stuck in a step for {patience.step_seconds:g} seconds and was ended")
                return
