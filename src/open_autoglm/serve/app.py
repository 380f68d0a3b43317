# SPDX-License-Identifier: Apache-2.0
"""The web application: routes over the models of a server."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from open_autoglm.errors import ConfigurationError
from open_autoglm.serve.error_shape import HttpError, install_error_handlers
from open_autoglm.serve.guards.cache_gate import IdentifyModel, ModelIdentity
from open_autoglm.serve.guards.guard_chain import Guards, install_guards
from open_autoglm.serve.guards.transport_security import ServerContext
from open_autoglm.serve.models.model_client import Models, OneModel
from open_autoglm.serve.routes.chat_route import ChatRoute
from open_autoglm.serve.routes.classify_route import ClassifyRoute
from open_autoglm.serve.routes.completion_route import CompletionRoute
from open_autoglm.serve.routes.docs_routes import add_docs_routes
from open_autoglm.serve.routes.embedding_route import EmbeddingRoute
from open_autoglm.serve.routes.health_routes import add_health_routes
from open_autoglm.serve.routes.metrics_route import add_metrics_route
from open_autoglm.serve.routes.playground_route import mount_playground
from open_autoglm.serve.routes.tokenize_route import TokenizeRoutes
from open_autoglm.serve.settings import ServeSettings
from open_autoglm.serve.watching.watch import Watch
from open_autoglm.serve.watching.watch_gate import WatchGate

if TYPE_CHECKING:
    from open_autoglm.engine import LLM
    from open_autoglm.serve.grpc.grpc_server import GrpcServer
    from open_autoglm.serve.pipelines.pipeline_desk import PipelineDesk
    from open_autoglm.serve.protocols.protocol_plugins import Protocols


class _Streaming:
    """A route's function without what Starlette puts around one: it would catch again what the application catches
    anyway, and each event of a stream would pass through it."""

    def __init__(self, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)


def create_app(llm: LLM, settings: ServeSettings) -> Starlette:
    """The application over a model in this process; its engine's thread runs from start-up to shutdown.

    `app.state.model` is the service over it. Raises ConfigurationError for a model without a tokenizer.
    """
    from open_autoglm.engine.model_service import ModelService

    if llm.vocabulary is None:
        raise ConfigurationError(f"{llm.name} has no tokenizer.json, so it cannot chat; add the checkpoint's tokenizer")
    model = ModelService(llm, max_queued=settings.max_queued)
    app = create_app_of(OneModel(model, settings.served_model_name or llm.name, int(time.time())), settings)
    app.state.model = model
    return app


def create_app_of(
    models: Models, settings: ServeSettings, tls: ServerContext | None = None, protocols: Protocols | None = None
) -> Starlette:
    """The application over models that may live elsewhere. It starts and stops them.

    `app.state` has `models`, `guards` and `watch`; with a `grpc_port` also the gRPC twin, `grpc`, which it starts and
    stops too. tls: for that one. protocols: as `make_protocols` makes them of the settings; made here if not given.
    Raises ConfigurationError or StorageError for a key file, or a folder or database of pipelines, that cannot be
    used, ConfigurationError for traces that cannot be sent, and for a protocol that is not there.
    """
    watch = Watch(models, settings.watching)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await models.start()
        try:
            if beside is not None:
                await beside.start()
            yield
        finally:
            if desk is not None:
                desk.close()
            if beside is not None:
                await beside.stop()
            await models.stop()
            await watch.close()

    app = Starlette(lifespan=lifespan)
    app.state.models = models
    app.state.watch = watch
    install_error_handlers(app)
    guards = install_guards(app, settings, identity_of(models))
    app.add_middleware(WatchGate, watch=watch, routes=lambda: app.routes)  # around the guards
    beside = app.state.grpc = None if settings.grpc_port is None else _grpc_server(models, guards, watch, tls)
    chat = ChatRoute(models, settings)
    completion = CompletionRoute(models, settings)
    for path, route in (("/v1/chat/completions", chat), ("/v1/completions", completion)):
        app.router.routes.append(Route(path, _Streaming(route.answer), methods=["POST"]))
    app.add_route("/v1/embeddings", EmbeddingRoute(models, settings).answer, methods=["POST"])
    app.add_route("/v1/classify", ClassifyRoute(models, settings).answer, methods=["POST"])
    app.add_route("/tokenize", TokenizeRoutes(models, settings).tokenize, methods=["POST"])
    app.add_route("/detokenize", TokenizeRoutes(models, settings).detokenize, methods=["POST"])
    if settings.protocol:
        _protocols(app, models, settings, chat, protocols)
    desk = None if settings.pipelines.pipelines is None else _pipelines(app, settings)
    add_docs_routes(app, with_pipelines=desk is not None)
    add_health_routes(app, models)
    add_metrics_route(app, watch)
    mount_playground(app)
    return app


def _protocols(
    app: Starlette, models: Models, settings: ServeSettings, chat: ChatRoute, protocols: Protocols | None
) -> None:
    from open_autoglm.serve.protocols.inner_chat import InnerChat
    from open_autoglm.serve.protocols.protocol_plugins import make_protocols
    from open_autoglm.serve.protocols.protocol_route import mount_protocols

    inner = InnerChat(models, chat, app.state.guards, app.state.watch)
    mount_protocols(app, make_protocols(settings.protocol) if protocols is None else protocols, inner, settings)


def _pipelines(app: Starlette, settings: ServeSettings) -> PipelineDesk:
    try:
        from open_autoglm.serve.pipelines.mount import mount_pipelines
    except ImportError as error:
        raise ConfigurationError(
            f"--pipelines needs packages that are not installed ({error.name}): pip install 'open-autoglm[pipeline]'"
        ) from None
    return mount_pipelines(app, settings)


def _grpc_server(models: Models, guards: Guards, watch: Watch, tls: ServerContext | None) -> GrpcServer:
    # Its core writes a line to stderr for each call that it refuses, and for what we tell in our own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from open_autoglm.serve.grpc.grpc_server import GrpcServer
    except ImportError as error:
        raise ConfigurationError(
            f"--grpc-port needs packages that are not installed ({error.name}): pip install 'open-autoglm[grpc]'"
        ) from None
    return GrpcServer(models, guards, watch, tls)


def identity_of(models: Models) -> IdentifyModel:
    """What a cache of answers must know of the model that a request names.

    Nothing of one that is not loaded now, whose files may be others when it is, or of a route, which chooses anew each
    time.
    """

    def identify(asked: str | None) -> ModelIdentity | None:
        try:
            name = models.resolve(asked)
        except HttpError:
            return None
        status = next((item for item in models.statuses() if item.name == name), None)
        if status is None or status.card is None or status.state != "ready":
            return None
        # The answer says the model's name, so it is part of what makes answers equal.
        return ModelIdentity(f"{status.card.digest}:{name}", greedy_by_default=status.card.default_temperature == 0)

    return identify
