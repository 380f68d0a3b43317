# SPDX-License-Identifier: Apache-2.0
"""`ModelService`: a loaded model that takes orders from an asyncio program, all of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from open_autoglm.engine.engine_thread import MAX_QUEUED, EngineThread
from open_autoglm.engine.llm import LLM
from open_autoglm.engine.order_desk import PREPARING, OrderDesk, error_of
from open_autoglm.engine.orders import ModelCard, Order, Piece, Question, Reply
from open_autoglm.engine.piece_merging import merge_pieces
from open_autoglm.engine.request import Completion
from open_autoglm.engine.stats import PROBE_SECONDS, READY_SECONDS, EngineStats, ModelState
from open_autoglm.task import Task


class ModelService:
    """A model, its engine's thread, and the desk that turns orders into engine requests.

    max_queued: choices in work and waiting.
    """

    def __init__(self, llm: LLM, *, max_queued: int = MAX_QUEUED) -> None:
        self._llm = llm
        self._desk = OrderDesk(llm)
        self._thread = EngineThread(llm.engine, max_queued=max_queued, probe_seconds=PROBE_SECONDS)
        self._preparing = asyncio.Semaphore(PREPARING)

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        return self._desk.card

    @property
    def task(self) -> Task | None:
        """What the model was built for."""
        return self._llm.task

    @property
    def state(self) -> ModelState:
        """What it does at present."""
        return "ready" if self.is_serving else "stopping"

    @property
    def reason(self) -> None:
        """Nothing: it comes and goes with this process."""

    @property
    def num_restarts(self) -> int:
        """Never: it comes and goes with this process."""
        return 0

    @property
    def is_serving(self) -> bool:
        """Whether new orders are taken."""
        return self._thread.is_serving

    @property
    def is_ready(self) -> bool:
        """Whether a step of the engine succeeded within the last seconds."""
        since = self._thread.seconds_since_step
        return self.is_serving and since is not None and since < READY_SECONDS

    @property
    def stats(self) -> EngineStats:
        """Where the engine stands."""
        return self._thread.stats

    @property
    def num_open(self) -> int:
        """Choices that are in work or waiting."""
        return self._thread.num_open

    async def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more orders, give those in work some time, end the rest with an error, and end the thread."""
        await asyncio.to_thread(self._thread.stop, drain_seconds)

    async def stream(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """Answer an order; yields what is new, as soon as it is certain. Each choice ends with its own last piece.

        Leaving early aborts what is left within one step; wrap it in `contextlib.aclosing` so that leaving is seen.
        Raises RequestError for an invalid order, EngineError when the engine fails, is full or is stopping.
        """
        async with self._preparing:
            prepared = await asyncio.to_thread(self._desk.prepare, order)
        async with aclosing(self._thread.stream(prepared.requests)) as deltas:
            async for delta in deltas:
                if (error := error_of(delta)) is not None:
                    raise error
                yield prepared.pieces(delta)

    async def answer(self, order: Order) -> list[Piece]:
        """Answer an order whole: one piece for each choice, in order. Raises as `stream` does."""
        pieces: list[Piece] = []
        async with aclosing(self.stream(order)) as news:
            async for some in news:
                pieces += some
        return sorted(merge_pieces(pieces), key=lambda piece: piece.choice)

    async def ask(self, question: Question) -> Reply:
        """The reply to a question. Raises RequestError for an invalid one, EngineError as `stream` does."""
        async with self._preparing:
            prepared = await asyncio.to_thread(self._desk.prepare_question, question)
        if not prepared.requests:
            return prepared.reply(())
        completions: dict[str, Completion] = {}
        async with aclosing(self._thread.stream(prepared.requests)) as deltas:
            async for delta in deltas:
                if (error := error_of(delta)) is not None:
                    raise error
                if delta.completion is not None:
                    completions[delta.request_id] = delta.completion
        return await asyncio.to_thread(prepared.reply, [completions[request.id] for request in prepared.requests])
