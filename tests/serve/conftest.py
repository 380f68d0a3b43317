# SPDX-License-Identifier: Apache-2.0
"""A real server on a real port, in a thread: one for each kind of model."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import openai
import pytest
import uvicorn

from open_autoglm.engine import LLM
from open_autoglm.engine.engine_thread import EngineThread
from open_autoglm.engine.model_service import ModelService
from open_autoglm.engine.request import Delta
from open_autoglm.serve.app import create_app
from open_autoglm.serve.guards.connection_limits import connection_options
from open_autoglm.serve.settings import ServeSettings, open_socket
from tests.engine.tiny_bundle import CLASSIFICATION, DIALOGUE, EXTRACTION, make_bundle


@dataclass(frozen=True)
class Running:
    """A server and ways to reach it."""

    url: str
    port: int
    model: ModelService
    llm: LLM

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 30, **options}
        )

    def post(self, body: Any = None, **options: Any) -> httpx.Response:
        options.setdefault("timeout", 30)
        if body is not None:
            options["json"] = body
        return httpx.post(f"{self.url}/v1/chat/completions", **options)

    def wait_until_idle(self) -> None:
        """Raise unless the engine has let everything go within five seconds."""
        for _ in range(500):
            stats = self.model.stats
            if not (stats.num_running or stats.num_waiting or self.model.num_open):
                assert stats.free_blocks == stats.total_blocks
                return
            time.sleep(0.01)
        raise AssertionError(f"still busy: {self.model.stats}, {self.model.num_open} open")


@contextlib.contextmanager
def serving(bundle: Path | LLM, **options: Any) -> Iterator[Running]:
    """Serve a bundle, or a model that is loaded, on a free port until the block ends.

    One thread computes: a second one would wait for its share of so small a step by spinning, on the core of others.
    """
    settings = ServeSettings(port=0, **options)
    with open_socket(settings) as listener, bundle if isinstance(bundle, LLM) else LLM(bundle, threads=1) as llm:
        app = create_app(llm, settings)
        options = connection_options(settings)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", **options))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{port}", port, app.state.model, llm)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextlib.contextmanager
def engine_held(running: Running) -> Iterator[threading.Event]:
    """The engine stays in its step until the block ends. Yields what is set once unfinished requests were dropped.

    So a client can go while the engine works, however fast that is.
    """
    dropped, go_on = threading.Event(), threading.Event()
    step, abort = running.llm.engine.step, EngineThread.abort

    def held() -> list[Delta]:
        assert go_on.wait(60)
        return step()

    def seen(thread: EngineThread, request_ids: Iterable[str]) -> None:
        unfinished = list(request_ids)
        abort(thread, unfinished)
        if unfinished:
            dropped.set()

    with patch.object(running.llm.engine, "step", held), patch.object(EngineThread, "abort", seen):
        try:
            yield dropped
        finally:
            go_on.set()
            running.wait_until_idle()


@pytest.fixture(scope="session")
def extraction_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("extraction"), EXTRACTION)


@pytest.fixture(scope="session")
def extractor(extraction_bundle: Path) -> Iterator[Running]:
    with serving(extraction_bundle) as running:
        yield running


@pytest.fixture(scope="session")
def dialogue_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("dialogue"), DIALOGUE, name="talker")


@pytest.fixture(scope="session")
def talker(dialogue_bundle: Path) -> Iterator[Running]:
    """Answers freely, and has a small body limit and choice limit."""
    with serving(dialogue_bundle, max_body=50_000, max_choices=8, max_generated=1500) as running:
        yield running


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(make_bundle(tmp_path_factory.mktemp("classes"), CLASSIFICATION)) as running:
        yield running


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find
