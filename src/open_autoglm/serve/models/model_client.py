# SPDX-License-Identifier: Apache-2.0
"""`ModelClient` and `Models`: what the routes need of a model, wherever it runs, and of all models by name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from open_autoglm.engine.orders import ModelCard, Order, Piece, Question, Reply
from open_autoglm.engine.stats import EngineStats, ModelState
from open_autoglm.serve.error_shape import HttpError
from open_autoglm.spelling import did_you_mean


class ModelClient(Protocol):
    """A model that takes orders: `engine.model_service.ModelService` in this process, or a process of its own."""

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        ...

    @property
    def state(self) -> ModelState:
        """What it does at present."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it is not there, for people."""
        ...

    @property
    def is_serving(self) -> bool:
        """Whether new orders are taken."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a step of the engine succeeded within the last seconds."""
        ...

    @property
    def stats(self) -> EngineStats:
        """Where the engine stands."""
        ...

    @property
    def num_open(self) -> int:
        """Choices that somebody waits for."""
        ...

    def stream(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """Answer an order; yields what is new. Leaving early aborts what is left.

        Raises RequestError for an invalid order, EngineError when the engine fails, is full or is stopping.
        """
        ...

    async def answer(self, order: Order) -> list[Piece]:
        """Answer an order whole: one piece for each choice, in order. Raises as `stream` does.

        Cheaper than `stream` for answers that are not streamed: nothing is sent between processes before the end.
        """
        ...

    async def ask(self, question: Question) -> Reply:
        """The reply to a question. Raises RequestError for an invalid one, EngineError as `stream` does."""
        ...


@dataclass(frozen=True)
class ModelStatus:
    """A model as the server lists it.

    aliases: other names that clients may use. card: known once it was loaded. stats: while it is loaded.
    is_ready: whether a real step succeeded within the last seconds. reason: why it is down, for people.
    created: seconds since 1970.
    num_loads, num_evictions: how often a pool loaded it, and let it go to make room. num_restarts: how often its
    process was started again after it had ended. version: of the bundle that is loaded, or was loaded last.
    """

    name: str
    state: ModelState
    created: int
    aliases: tuple[str, ...] = ()
    card: ModelCard | None = None
    stats: EngineStats | None = None
    num_open: int = 0
    is_ready: bool = False
    reason: str | None = None
    num_loads: int = 0
    num_evictions: int = 0
    num_restarts: int = 0
    version: str | None = None


class Models(Protocol):
    """The models of a server, by name.

    `async with models.use(name) as model:` keeps a model loaded for as long as the block runs, so it holds the whole
    answer. An unknown name is an HttpError 404 `model_not_found`; a model that cannot be loaded, an EngineError.
    """

    def names(self) -> Sequence[str]:
        """The names that clients use, aliases not among them; the first is the default."""
        ...

    def resolve(self, name: str | None) -> str:
        """The model's own name for a name or alias; the default model's for none. Raises HttpError 404."""
        ...

    def use(self, name: str | None) -> AbstractAsyncContextManager[ModelClient]:
        """The model, loaded if it was not; it stays at least until the block ends."""
        ...

    def statuses(self) -> Sequence[ModelStatus]:
        """All models with their state."""
        ...

    async def start(self) -> None:
        """Start what must run from the beginning. Does nothing the second time. Raises what loading a model raises."""
        ...

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more orders, give those in work some time, end the rest with an error, let the models go."""
        ...


class StartedModel(ModelClient, Protocol):
    """A model that can be started and stopped by the server."""

    @property
    def num_restarts(self) -> int:
        """How often its engine was started again after it had ended."""
        ...

    async def start(self) -> None:
        """Be ready for orders on return. Raises what loading raises."""
        ...

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more orders, give those in work some time, end the rest with an error."""
        ...


class OneModel:
    """`Models` with a single model, loaded for as long as the server runs.

    name: what clients call it; its own name if not given. version: of its bundle.
    """

    def __init__(self, model: StartedModel, name: str | None, created: int, version: str | None = None) -> None:
        self._model, self._name, self._created, self._version = model, name, created, version
        self._started = False

    @property
    def model(self) -> StartedModel:
        """The one model."""
        return self._model

    def names(self) -> list[str]:
        """The one name."""
        return [self._name or self._model.card.name]

    def resolve(self, name: str | None) -> str:
        """The one name. Raises HttpError 404 for another."""
        own = self._name or self._model.card.name
        if name not in (None, own):
            raise model_not_found(name, [own])
        return own

    def use(self, name: str | None) -> AbstractAsyncContextManager[ModelClient]:
        """The one model."""
        self.resolve(name)
        return nullcontext(self._model)

    def statuses(self) -> list[ModelStatus]:
        """The one model with its state."""
        model = self._model
        return [
            ModelStatus(
                self.resolve(None),
                model.state,
                self._created,
                card=model.card,
                stats=model.stats,
                num_open=model.num_open,
                is_ready=model.is_ready,
                reason=model.reason,
                num_loads=1,
                num_restarts=model.num_restarts,
                version=self._version,
            )
        ]

    async def start(self) -> None:
        """Start the model, once."""
        if not self._started:
            self._started = True
            await self._model.start()

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Stop the model."""
        await self._model.stop(drain_seconds)


def model_not_found(name: str | None, known: Sequence[str]) -> HttpError:
    """The fault for a name that no model has."""
    hint = did_you_mean(name or "", known)
    return HttpError(404, f"there is no model {(name or '')[:100]!r} here{hint}", "model", "model_not_found")
