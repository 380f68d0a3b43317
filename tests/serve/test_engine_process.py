# SPDX-License-Identifier: Apache-2.0
"""The engine in a process of its own: the same answers, explicit ends, and a service that comes back."""

import asyncio
import os
import random
import signal
from contextlib import aclosing
from pathlib import Path

import pytest

from open_autoglm.engine import LLM
from open_autoglm.engine.model_service import ModelService
from open_autoglm.engine.orders import TextOrder, TokenizeOrder
from open_autoglm.errors import BundleError, ConfigurationError, EngineError, OpenAutoGLMError, RequestError
from open_autoglm.serve.models.engine_process import EngineProcess, EngineWatch
from open_autoglm.serve.models.worker_process import ModelSource, WorkerProcess, end_in_words
from tests.engine.tiny_bundle import LINES
from tests.serve.process_tools import QUICK, engine, is_alive, order, read, run, text_of, until


def test_answers_equal_those_of_an_engine_in_this_process(dialogue_bundle: Path) -> None:
    orders = [order(line, n=2, logprobs=2, temperature=1.0, seed=3) for line in LINES]
    orders.append(TextOrder(["play the song", "book a table"], {"max_tokens": 5, "temperature": 0.0}))

    async def here() -> list[list[object]]:
        with LLM(dialogue_bundle, threads=1) as llm:
            service = ModelService(llm)
            await service.start()
            answers = [await service.answer(item) for item in orders]
            await service.stop()
            return answers

    async def there() -> tuple[list[object], list[object], object]:
        async with engine(dialogue_bundle) as model:
            whole = await asyncio.gather(*map(model.answer, orders))
            streamed = await asyncio.gather(*(read(model, item) for item in orders))
            return whole, streamed, model.card

    expected = run(here())
    whole, streamed, card = run(there())
    for wanted, answer, pieces in zip(expected, whole, streamed, strict=True):
        for choice, piece in enumerate(answer):
            own = [item for item in pieces if item.choice == choice]
            assert piece.text == wanted[choice].text == text_of(own)
            assert piece.num_tokens == wanted[choice].num_tokens == sum(item.num_tokens for item in own)
            assert piece.scores == wanted[choice].scores == [score for item in own for score in item.scores]
            assert piece.finish_reason == wanted[choice].finish_reason == own[-1].finish_reason
            assert piece.usage is not None
            assert piece.usage.completion_tokens == own[-1].usage.completion_tokens
    assert card.name == "talker"
    assert card.has_tokenizer


def test_a_fault_of_a_request_is_the_same_error_and_ends_nothing_else(dialogue_bundle: Path) -> None:
    async def work() -> None:
        async with engine(dialogue_bundle) as model:
            other = asyncio.create_task(model.answer(order(max_tokens=150)))
            with pytest.raises(RequestError, match="context of 256") as caught:
                await model.answer(order(max_tokens=100_000))
            assert caught.value.parameter == "max_tokens"
            with pytest.raises(RequestError) as caught:
                await read(model, TextOrder([], {}))
            assert caught.value.parameter == "prompt"
            with pytest.raises(OpenAutoGLMError):
                await model.ask(TokenizeOrder(prompt="hello", messages=[{"role": "user", "content": "both"}]))
            assert (await other)[0].num_tokens == 150
            assert model.num_open == 0

    run(work())


def test_leaving_aborts_and_frees(dialogue_bundle: Path) -> None:
    async def work() -> None:
        async with engine(dialogue_bundle) as model:

            async def leave(count: int) -> None:
                async with aclosing(model.stream(order(n=2, max_tokens=200))) as pieces:
                    async for _ in pieces:
                        count -= 1
                        if count <= 0:
                            return

            async def cancel(seconds: float) -> None:
                task = asyncio.create_task(model.answer(order(max_tokens=200)))
                await asyncio.sleep(seconds)
                task.cancel()
                await asyncio.wait({task})

            await asyncio.gather(*map(leave, range(1, 20)), *(cancel(index / 500) for index in range(20)))
            assert model.num_open == 0
            await asyncio.sleep(0.6)  # what it says of itself is new by then
            await until(lambda: not (model.stats.num_running or model.stats.num_waiting))
            await until(lambda: model.stats.free_blocks == model.stats.total_blocks > 0)

    run(work())


async def ask_until(model: EngineProcess, stop: asyncio.Event) -> list[str]:
    """Ask again and again. Returns how each request ended."""
    ends: list[str] = []
    while not stop.is_set():
        try:
            pieces = await read(model, order(max_tokens=random.randint(1, 120)))
            assert pieces[-1].finish_reason == "length"
            ends.append("answered")
        except EngineError as error:
            assert "engine" in str(error) or "loaded" in str(error)
            ends.append("failed")
            await asyncio.sleep(0.02)
    return ends


async def hit(folder: Path, number: signal.Signals, rounds: int) -> list[str]:
    """Send a signal under load, so many times; each time wait until the model answers again."""
    async with engine(folder) as model:
        stop = asyncio.Event()
        clients = [asyncio.create_task(ask_until(model, stop)) for _ in range(8)]
        for _ in range(rounds):
            await until(lambda: model.is_ready and model.num_open > 0)
            pid = model.pid
            assert pid is not None
            await asyncio.sleep(random.uniform(0.0, 0.2))
            os.kill(pid, number)
            await until(lambda dead=pid: model.pid not in (None, dead))
            assert not is_alive(pid), "a process that does not answer is ended"
            assert (await model.answer(order(max_tokens=3)))[0].num_tokens == 3
        stop.set()
        ends = [end for client in clients for end in await client]
        assert model.num_open == 0
        return ends


@pytest.mark.parametrize(("number", "rounds"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 1)])
def test_a_dead_or_silent_engine_fails_requests_explicitly_and_comes_back(
    dialogue_bundle: Path, number: signal.Signals, rounds: int
) -> None:
    ends = run(hit(dialogue_bundle, number, rounds))
    assert ends.count("failed") >= rounds
    assert ends.count("answered") >= rounds


def test_an_engine_that_never_answers_stays_down_and_says_why(dialogue_bundle: Path) -> None:
    async def work() -> None:
        watch = EngineWatch(most_failures=2, backoff_seconds=0.05)
        async with engine(dialogue_bundle, watch) as model:
            for _ in range(2):
                await until(lambda: model.pid is not None and model.is_serving)
                pid = model.pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await until(lambda dead=pid: model.pid != dead)
            await until(lambda: model.state == "failed")
            assert not model.is_ready
            with pytest.raises(EngineError, match=r"2 times in a row.*signal 9"):
                await model.answer(order())

    run(work())


def test_an_engine_whose_step_does_not_end_is_ended(dialogue_bundle: Path) -> None:
    async def work() -> None:
        async with engine(dialogue_bundle, EngineWatch(step_seconds=1e-9)) as model:
            pid = model.pid
            message = ""
            while "not tried again" not in message:  # any step is too long, once one is seen
                await until(lambda: model.reason is None)
                try:
                    await asyncio.gather(*(model.answer(order(max_tokens=100)) for _ in range(8)))
                except EngineError as error:
                    message = str(error)
                    # It may have been ended between two rounds, or before all orders were on their way.
                    assert "not tried again" in message or "being loaded again" in message
            await until(lambda: model.reason is not None)
            assert "stuck in a step" in str(model.reason)
            await until(lambda: model.pid not in (None, pid))

    run(work())


def test_what_keeps_a_model_from_loading_comes_across(dialogue_bundle: Path, tmp_path: Path) -> None:
    async def load(folder: Path, **options: object) -> None:
        async with engine(folder, **options):
            raise AssertionError("it must not load")

    with pytest.raises(BundleError, match="there is no model") as bundle:
        run(load(tmp_path / "nothing"))
    assert bundle.value.exit_code == 5
    with pytest.raises(ConfigurationError, match="int3"):
        run(load(dialogue_bundle, quantize="int3"))
    with pytest.raises(EngineError, match="internal error"):
        run(load(dialogue_bundle, no_such_option=1))


def test_a_process_that_dies_or_hangs_while_loading_is_told(dialogue_bundle: Path) -> None:
    async def work(number: signal.Signals) -> None:
        source = ModelSource(str(dialogue_bundle))
        process = WorkerProcess(source, 10)
        os.kill(process.pid, number)
        watch = EngineWatch(start_seconds=0.5)
        with pytest.raises(EngineError, match=r"signal 9|within 0\.5 seconds"):
            await EngineProcess(source, max_queued=10, watch=watch, process=process).start()
        assert not is_alive(process.pid)

    run(work(signal.SIGKILL))
    run(work(signal.SIGSTOP))


def test_stopping_lets_answers_end_or_says_so(dialogue_bundle: Path) -> None:
    async def work(drain: float) -> set[str]:
        async with engine(dialogue_bundle) as model:
            tasks = [asyncio.create_task(read(model, order(max_tokens=200))) for _ in range(12)]
            await asyncio.sleep(0)  # each has begun
            assert model.num_open == 12
            await model.stop(drain)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            with pytest.raises(EngineError, match="stopping"):
                await model.answer(order())
            assert model.state == "stopping"
            return {str(end) if isinstance(end, EngineError) else end[-1].finish_reason for end in ends}

    assert run(work(60.0)) == {"length"}
    assert run(work(0.0)) <= {"length", "the server is stopping; ask again later"}


def test_a_full_engine_refuses_at_once(dialogue_bundle: Path) -> None:
    async def work() -> None:
        source = ModelSource(str(dialogue_bundle), {"threads": 1})
        model = EngineProcess(source, max_queued=4, watch=QUICK)
        await model.start()
        tasks = [asyncio.create_task(model.answer(order(max_tokens=100))) for _ in range(4)]
        await asyncio.sleep(0)  # each has begun
        assert model.num_open == 4
        with pytest.raises(EngineError, match="4 requests in work"):
            await model.answer(order())
        assert len(await asyncio.gather(*tasks)) == 4
        await model.stop()

    run(work())


def test_watch_settings_and_words() -> None:
    watch = EngineWatch(backoff_seconds=1.0, longest_backoff=10.0)
    assert watch.backoff(1) == 0.0
    for failures in range(2, 60):
        assert 0.5 <= watch.backoff(failures) <= 10.0
    with pytest.raises(ConfigurationError, match="silence_seconds"):
        EngineWatch(silence_seconds=0)
    assert "signal 11 (SIGSEGV)" in end_in_words(-11)
    assert "out of memory" in end_in_words(-9)
    assert "status 3" in end_in_words(3)
