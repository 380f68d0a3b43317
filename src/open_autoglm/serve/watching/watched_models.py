# SPDX-License-Identifier: Apache-2.0
"""`watched`: the models of a server as one request asks them, so that its record tells what they answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import msgspec

from open_autoglm.engine.orders import (
    Classes,
    ClassifyOrder,
    DetokenizeOrder,
    Embeddings,
    EmbedOrder,
    ModelCard,
    Order,
    Piece,
    Question,
    Reply,
    TokenizeOrder,
)
from open_autoglm.errors import OpenAutoGLMError, RequestError
from open_autoglm.serve.error_shape import error_body
from open_autoglm.serve.models.model_client import ModelClient, Models
from open_autoglm.serve.models.routed_models import RoutedModel
from open_autoglm.serve.watching.answer_form import form_of
from open_autoglm.serve.watching.request_record import RequestRecord

_OPERATIONS: Final[Mapping[type[Any], str]] = {
    EmbedOrder: "embeddings",
    ClassifyOrder: "classify",
    TokenizeOrder: "tokenize",
    DetokenizeOrder: "detokenize",
}


class WatchedModels:
    """Models by name, for one request."""

    def __init__(self, models: Models, record: RequestRecord) -> None:
        self._models, self._record = models, record

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[WatchedModel]:
        """As `Models.use` does."""
        with _noting(self._record):
            async with self._models.use(name) as model:
                yield WatchedModel(model, name, self._record)


class WatchedModel:
    """A model, as one request asks it: what `ModelClient` has for asking."""

    def __init__(self, model: ModelClient, name: str, record: RequestRecord) -> None:
        self._model, self._name, self._record = model, name, record

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        return self._model.card

    async def stream(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """As `ModelClient.stream` does."""
        record = self._record
        asked = self._begin(order, stream=True)
        async with aclosing(self._model.stream(asked)) as pieces:
            async for some in pieces:
                record.take(some)
                yield some if asked is order else [_unscored(piece) for piece in some]

    async def answer(self, order: Order) -> list[Piece]:
        """As `ModelClient.answer` does."""
        asked = self._begin(order, stream=False)
        pieces = await self._model.answer(asked)
        self._record.take(pieces)
        return pieces if asked is order else [_unscored(piece) for piece in pieces]

    async def ask(self, question: Question) -> Reply:
        """As `ModelClient.ask` does."""
        self._record.begin_question(self._name, _OPERATIONS[type(question)])
        reply = await self._model.ask(question)
        if isinstance(reply, Embeddings | Classes):
            self._record.prompt_tokens = reply.prompt_tokens
        return reply

    def _begin(self, order: Order, *, stream: bool) -> Order:
        """Note what is asked. Returns the order, which may ask for the probabilities of tokens where it did not."""
        card = None if isinstance(self._model, RoutedModel) else self._model.card
        task = None if card is None else card.task
        digest = None if card is None else card.digest
        self._record.begin_order(self._name, order, form_of(order, task), stream=stream, digest=digest)
        if not self._record.scored or order.params.get("logprobs") is not None:
            return order
        return msgspec.structs.replace(order, params={**order.params, "logprobs": 0})


@contextlib.contextmanager
def _noting(record: RequestRecord) -> Iterator[None]:
    """Note how a request ends before its answer does."""
    try:
        yield
    except OpenAutoGLMError as error:
        # What is wrong with a request may quote it, so only what is wrong with us is kept in words.
        record.fail(error_body(error)[0], None if isinstance(error, RequestError) else str(error))
        raise
    except (asyncio.CancelledError, GeneratorExit):
        record.leave()
        raise


def _unscored(piece: Piece) -> Piece:
    return msgspec.structs.replace(piece, scores=[]) if piece.scores else piece


def watched(models: Models, record: RequestRecord) -> WatchedModels:
    """The models, told of in the record."""
    return WatchedModels(models, record)
