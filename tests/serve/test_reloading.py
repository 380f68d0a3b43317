# SPDX-License-Identifier: Apache-2.0
"""Models taken anew while others are served: what comes, what goes, and that a fault changes nothing."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from open_autoglm.engine.model_paths import version_of_model
from open_autoglm.errors import ConfigurationError, EngineError
from open_autoglm.serve.error_shape import HttpError
from open_autoglm.serve.models.model_pool import ModelEntry
from open_autoglm.serve.models.reloading import ModelsReload
from open_autoglm.serve.models.routing import Route, RoutingPolicy
from open_autoglm.serve.models.worker_process import ModelSource
from open_autoglm.serve.pid_file import PidFile
from tests.serve.process_tools import order, run
from tests.serve.test_model_pool import answer, pool, states


def source(folder: Path) -> ModelSource:
    return ModelSource(str(folder), {"threads": 1})


def test_models_come_go_and_change_without_cutting_answers_off(dialogue_bundle: Path, extraction_bundle: Path) -> None:
    async def work() -> None:
        async with pool(dialogue_bundle, extraction_bundle) as models:
            assert await answer(models, "talker") == 3
            assert models.statuses()[0].version == version_of_model(dialogue_bundle)
            async with models.use("talker") as before, aclosing(before.stream(order(max_tokens=150))) as pieces:
                first = await anext(pieces)
                entries = [
                    ModelEntry("talker", source(extraction_bundle), ("chat",)),
                    ModelEntry("new", source(dialogue_bundle)),
                ]
                assert await models.take(entries) == ["talker", "extractor", "gone", "new"]
                assert models.statuses()[0].version == version_of_model(extraction_bundle)
                async with models.use("chat") as after:
                    assert after.pid != before.pid
                rest = [piece async for some in pieces for piece in some]
                assert sum(piece.num_tokens for piece in (*first, *rest)) == 150
            for _ in range(200):
                if before.pid is None:
                    break
                await asyncio.sleep(0.05)
            assert before.pid is None, "the old process ends when its answers are done"
            with pytest.raises(HttpError, match="small"):
                models.resolve("small")
            assert await answer(models, "new") == 3

    run(work())


def test_a_fault_changes_nothing(dialogue_bundle: Path, extraction_bundle: Path, tmp_path: Path) -> None:
    async def work() -> None:
        async with pool(dialogue_bundle, extraction_bundle) as models:
            await answer(models, "talker")
            before = models.statuses()[0].version
            missing = ModelEntry("talker", source(tmp_path / "nothing"))
            with pytest.raises(EngineError, match="'talker' cannot be loaded"):
                await models.take([ModelEntry("fresh", source(extraction_bundle), preload=True), missing])
            with pytest.raises(ConfigurationError, match="two models are called 'a'"):
                await models.take([ModelEntry("a", source(dialogue_bundle)), ModelEntry("b", missing.source, ("a",))])
            assert states(models) == {"talker": "ready", "extractor": "not loaded", "gone": "not loaded"}
            assert (models.statuses()[0].version, await answer(models, "small")) == (before, 3)
            policy = RoutingPolicy((Route("chats", ("small",)),))
            reload = ModelsReload(models, policy, lambda: ([ModelEntry("talker", source(dialogue_bundle))], policy))
            assert "stay as they were: route 'chats' needs the model 'small'" in await reload.reload()
            same = [ModelEntry("talker", source(dialogue_bundle), ("small",))]
            told = await ModelsReload(models, policy, lambda: (same, None)).reload()
            assert told == "reload: models: changed: extractor, gone; needs a restart: router"

    run(work())


def test_a_pid_file_belongs_to_one_server(tmp_path: Path) -> None:
    first, second = PidFile(tmp_path / "pid"), PidFile(tmp_path / "pid")
    first.take()
    assert (tmp_path / "pid").read_text() == ""
    first.write()
    assert int((tmp_path / "pid").read_text()) > 1
    with pytest.raises(ConfigurationError, match="give each its own --pid-file"):
        second.take()
    first.close()
    second.take()
    second.close()
