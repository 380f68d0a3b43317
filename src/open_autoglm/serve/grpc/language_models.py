# SPDX-License-Identifier: Apache-2.0
"""The service of the .proto file: each method asks what its REST route asks, and answers in messages."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from open_autoglm.engine.orders import (
    Classes,
    DetokenizeOrder,
    Embeddings,
    Order,
    Question,
    Reply,
    Text,
    Tokens,
)
from open_autoglm.errors import EngineError
from open_autoglm.serve.grpc import open_autoglm_pb2 as pb
from open_autoglm.serve.grpc.answer_messages import ChatWriter, MessageWriter, TextWriter
from open_autoglm.serve.grpc.call_guard import CallGuard
from open_autoglm.serve.grpc.calls import Asked, CallHandler, Method, StreamedMethod, WholeMethod
from open_autoglm.serve.models.model_client import Models, ModelStatus
from open_autoglm.serve.routes.answering import TokensUsed
from open_autoglm.serve.routes.chat_request import ChatCompletionRequest
from open_autoglm.serve.routes.chat_route import chat_order
from open_autoglm.serve.routes.classify_route import ClassifyRequest, classify_order, likeliest_label
from open_autoglm.serve.routes.completion_request import CompletionRequest
from open_autoglm.serve.routes.completion_route import completion_order, echoes_of
from open_autoglm.serve.routes.embedding_route import EmbeddingRequest, embed_order, vector_of
from open_autoglm.serve.routes.health_routes import model_card
from open_autoglm.serve.routes.tokenize_route import DetokenizeRequest, TokenizeRequest
from open_autoglm.serve.watching.watch import Watch
from open_autoglm.serve.watching.watched_models import watched

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["LanguageModels"].full_name

_Reply = TypeVar("_Reply", bound=Reply)


class LanguageModels:
    """The methods over a server's models, behind its guards. watch: is told of each call."""

    def __init__(self, models: Models, guard: CallGuard, watch: Watch) -> None:
        self._models, self._guard, self._watch = models, guard, watch

    def methods(self) -> list[Method]:
        """All methods, each with the REST route that does the same."""
        chat, text, models = "/v1/chat/completions", "/v1/completions", "/v1/models"
        return [
            WholeMethod("Chat", chat, pb.ChatRequest, self._chat),
            StreamedMethod("StreamChat", chat, pb.ChatRequest, self._stream_chat),
            WholeMethod("Complete", text, pb.CompleteRequest, self._complete),
            StreamedMethod("StreamComplete", text, pb.CompleteRequest, self._stream_complete),
            WholeMethod("Embed", "/v1/embeddings", pb.EmbedRequest, self._embed),
            WholeMethod("Classify", "/v1/classify", pb.ClassifyRequest, self._classify),
            WholeMethod("Tokenize", "/tokenize", pb.TokenizeRequest, self._tokenize),
            WholeMethod("Detokenize", "/detokenize", pb.DetokenizeRequest, self._detokenize),
            WholeMethod("ListModels", models, pb.ListModelsRequest, self._list_models),
            WholeMethod("GetModel", models, pb.GetModelRequest, self._get_model),
        ]

    def handler(self) -> grpc.GenericRpcHandler:
        """For a server's `add_generic_rpc_handlers`."""
        handlers = {
            method.name: CallHandler(SERVICE, method, self._guard, self._watch).handler() for method in self.methods()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _chat(self, asked: Asked) -> Message:
        name, order, writer = self._conversation(asked)
        return await self._whole(name, order, writer, asked)

    async def _stream_chat(self, asked: Asked) -> AsyncGenerator[Message, None]:
        name, order, writer = self._conversation(asked)
        async with aclosing(self._parts(name, order, writer, asked)) as parts:
            async for part in parts:
                yield part

    def _conversation(self, asked: Asked) -> tuple[str, Order, ChatWriter]:
        request = ChatCompletionRequest.parse(asked.body)
        name = self._models.resolve(request.model)
        order = chat_order(request, self._guard.settings)
        return name, order, ChatWriter(name, request.num_choices, request.metadata or {})

    async def _complete(self, asked: Asked) -> Message:
        name, order, writer = await self._texts(asked)
        return await self._whole(name, order, writer, asked)

    async def _stream_complete(self, asked: Asked) -> AsyncGenerator[Message, None]:
        name, order, writer = await self._texts(asked)
        async with aclosing(self._parts(name, order, writer, asked)) as parts:
            async for part in parts:
                yield part

    async def _texts(self, asked: Asked) -> tuple[str, Order, TextWriter]:
        request = CompletionRequest.parse(asked.body)
        name = self._models.resolve(request.model)
        order = completion_order(request, self._guard.settings)
        echoes = await echoes_of(request, self._models, name) if request.echo else [""] * len(request.prompts)
        writer = TextWriter(
            name,
            echoes,
            num_choices=request.num_choices,
            num_made=request.num_made,
            logprobs=request.logprobs is not None,
        )
        return name, order, writer

    async def _whole(self, name: str, order: Order, writer: MessageWriter, asked: Asked) -> Message:
        async with watched(self._models, asked.record).use(name) as model:
            pieces = await model.answer(order)
        used = TokensUsed(order)
        used.add(pieces)
        asked.meter.record(used.answer_tokens, used.prompt_tokens)
        return writer.whole(pieces)

    async def _parts(
        self, name: str, order: Order, writer: MessageWriter, asked: Asked
    ) -> AsyncGenerator[Message, None]:
        used = TokensUsed(order)
        models = watched(self._models, asked.record)
        async with models.use(name) as model, aclosing(model.stream(order)) as news:
            async for pieces in news:
                if asked.meter.counts:
                    used.add(pieces)
                    asked.meter.record(used.answer_tokens, used.prompt_tokens)
                if (part := writer.part(pieces)) is not None:
                    yield part
        yield writer.last()

    async def _embed(self, asked: Asked) -> Message:
        request = EmbeddingRequest.parse(asked.body)
        name = self._models.resolve(request.model)
        reply, _ = await self._reply(asked, name, embed_order(request, self._guard.settings), Embeddings)
        asked.meter.record(0, reply.prompt_tokens)
        vectors = [pb.Embedding(index=index, embedding=vector_of(row)) for index, row in enumerate(reply.vectors)]
        return pb.EmbedResponse(model=name, data=vectors, usage=_prompt_usage(reply.prompt_tokens))

    async def _classify(self, asked: Asked) -> Message:
        request = ClassifyRequest.parse(asked.body)
        name = self._models.resolve(request.model)
        reply, _ = await self._reply(asked, name, classify_order(request, self._guard.settings), Classes)
        asked.meter.record(0, reply.prompt_tokens)
        found = [
            pb.Classification(index=index, label=likeliest_label(reply.labels, row), probs=row)
            for index, row in enumerate(reply.probabilities)
        ]
        return pb.ClassifyResponse(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=name,
            labels=reply.labels,
            data=found,
            usage=_prompt_usage(reply.prompt_tokens),
        )

    async def _tokenize(self, asked: Asked) -> Message:
        request = TokenizeRequest.parse(asked.body)
        reply, longest = await self._reply(asked, self._models.resolve(request.model), request.order(), Tokens)
        return pb.TokenizeResponse(
            count=len(reply.ids), max_model_len=longest, tokens=reply.ids, token_strs=reply.names or ()
        )

    async def _detokenize(self, asked: Asked) -> Message:
        request = DetokenizeRequest.parse({"tokens": [], **asked.body})
        name = self._models.resolve(request.model)
        reply, _ = await self._reply(asked, name, DetokenizeOrder(request.tokens), Text)
        return pb.DetokenizeResponse(prompt=reply.text)

    async def _reply(self, asked: Asked, name: str, question: Question, kind: type[_Reply]) -> tuple[_Reply, int]:
        """The reply to a question, and how long a prompt of the model may be."""
        async with watched(self._models, asked.record).use(name) as model:
            reply: Reply = await model.ask(question)
            longest = model.card.max_context
        if not isinstance(reply, kind):
            raise EngineError("the engine gave another reply than was asked for")
        return reply, longest

    async def _list_models(self, asked: Asked) -> Message:
        del asked  # it has no fields
        return pb.ListModelsResponse(data=[_model(status) for status in self._models.statuses()])

    async def _get_model(self, asked: Asked) -> Message:
        name = self._models.resolve(asked.body["model"])
        return next(_model(status) for status in self._models.statuses() if status.name == name)


def _prompt_usage(tokens: int) -> pb.Usage:
    return pb.Usage(prompt_tokens=tokens, total_tokens=tokens)


def _model(status: ModelStatus) -> pb.Model:
    card = model_card(status)
    del card["object"]  # says what JSON cannot, and messages do
    return pb.Model(**card)
