# SPDX-License-Identifier: Apache-2.0
"""The engine behind asyncio: streams arrive in order, leaving aborts, a broken engine says so."""

import asyncio
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from open_autoglm.engine import Completion, Delta, Engine, Request, SamplingParams
from open_autoglm.engine.backends.torch_backend import TorchBackend
from open_autoglm.engine.engine import complete_all
from open_autoglm.engine.engine_thread import EngineThread
from open_autoglm.errors import EngineError, RequestError
from tests.engine.tiny_bundle import make_config, make_model

LONG = SamplingParams(max_tokens=200, ignore_eos=True)


def request(name: str, params: SamplingParams = LONG) -> Request:
    return Request(name, (9, 8, 7), params)


@pytest.fixture
def engine() -> Engine:
    return Engine(TorchBackend(make_model(make_config())), max_sequences=8)


@pytest.fixture
def thread(engine: Engine) -> Iterator[EngineThread]:
    started = EngineThread(engine, max_queued=20)
    started.start()
    yield started
    started.stop()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


async def until_idle(thread: EngineThread) -> None:
    for _ in range(500):
        stats = thread.stats
        if stats.num_running == stats.num_waiting == 0 and stats.free_blocks == stats.total_blocks:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"still busy: {thread.stats}")


def test_streams_give_what_a_plain_engine_gives(thread: EngineThread) -> None:
    plain = Engine(TorchBackend(make_model(make_config())))
    (expected,) = complete_all(plain, [request("x")])

    async def read(name: str) -> list[int]:
        return [token async for delta in thread.stream([request(name)]) for token in delta.token_ids]

    async def work() -> list[list[int]]:
        return await asyncio.gather(*(read(str(index)) for index in range(12)))

    assert run(work()) == [list(expected.token_ids)] * 12
    assert thread.num_open == 0


def test_who_keeps_what_comes_is_told_of_the_end_only(engine: Engine) -> None:
    (expected,) = complete_all(Engine(TorchBackend(make_model(make_config()))), [request("x")])
    kept: dict[str, list[Delta]] = {"a": [], "b": []}
    told: list[tuple[str, Delta]] = []
    steps: list[int] = []
    done = threading.Event()

    def sink(news: Sequence[tuple[str, Any]]) -> None:
        for name, item in news:
            told.append((name, item))
            thread.keep([name, "nobody"], kept[name].append)
            if item.completion is not None and len([item for _, item in told if item.completion]) == 2:
                done.set()

    thread = EngineThread(engine, after_step=lambda: steps.append(sum(map(len, kept.values())) + len(told)))
    thread.start()
    try:
        for name in kept:
            thread.submit([request(name)], name, sink)
        assert done.wait(30)
    finally:
        thread.stop()
    assert len(told) == 4, "of each the first and the last"
    for name, deltas in kept.items():
        first, last = (item for reader, item in told if reader == name)
        tokens = [token for delta in (first, *deltas, last) for token in delta.token_ids]
        assert tokens == list(expected.token_ids)
    assert steps == sorted(steps)
    assert steps[-1] == 400, "what a step brought is with its reader when the step is told of"
    assert not vars(thread)["_keepers"], "nothing is left of requests that have ended"


def test_leaving_aborts_within_a_step_wherever_the_request_is(thread: EngineThread) -> None:
    async def work() -> None:
        async def leave_after(count: int, name: str) -> None:
            async with aclosing(thread.stream([request(name), request(name + "b")])) as deltas:
                async for _ in deltas:
                    count -= 1
                    if count <= 0:
                        return

        await asyncio.gather(*(leave_after(index, str(index)) for index in range(1, 9)))
        tasks = [asyncio.create_task(thread.complete([request(f"t{index}")])) for index in range(12)]
        await asyncio.sleep(0.02)
        steps = thread.stats.num_steps
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until_idle(thread)
        assert thread.stats.num_steps - steps < 20, "200 tokens were asked for"

    run(work())
    assert thread.num_open == 0


def test_an_invalid_request_is_its_own_fault_only(thread: EngineThread) -> None:
    async def work() -> None:
        other = asyncio.create_task(thread.complete([request("good")]))
        with pytest.raises(RequestError, match="empty"):
            await thread.complete([Request("bad", (), LONG)])
        assert len((await other)[0].token_ids) == 200

    run(work())


def test_a_full_engine_refuses(thread: EngineThread) -> None:
    async def work() -> None:
        with pytest.raises(EngineError, match="ask again later"):
            await thread.complete([request(str(index)) for index in range(21)])
        assert len(await thread.complete([request(str(index)) for index in range(20)])) == 20

    run(work())


class BrokenEngine(Engine):
    """Breaks outside the backend, once."""

    broken = True

    def step(self) -> list[Delta]:
        if self.broken and self.stats.num_running:
            self.broken = False
            raise IndexError("a fault of ours")
        return super().step()


def test_a_broken_engine_says_so_and_goes_on() -> None:
    thread = EngineThread(BrokenEngine(TorchBackend(make_model(make_config()))))
    thread.start()

    async def work() -> None:
        with pytest.raises(EngineError, match="IndexError: a fault of ours"):
            await thread.complete([request("a"), request("b")])
        await until_idle(thread)
        assert len((await thread.complete([request("c")]))[0].token_ids) == 200

    run(work())
    thread.stop()


@pytest.mark.parametrize("drain", [0.0, 30.0])
def test_stopping_drains_or_ends_explicitly(engine: Engine, drain: float) -> None:
    thread = EngineThread(engine)
    thread.start()

    async def work() -> None:
        tasks = [asyncio.create_task(thread.complete([request(str(index))])) for index in range(20)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await asyncio.to_thread(thread.stop, drain)
        assert time.monotonic() - started < 20
        reasons = {(await task)[0].finish_reason for task in tasks}
        assert reasons == ({"length"} if drain else {"abort"}) or (not drain and reasons == {"abort", "length"})
        with pytest.raises(EngineError, match="stopping"):
            await thread.complete([request("late")])

    run(work())
    assert not thread.is_serving
    assert engine.stats.free_blocks == engine.stats.total_blocks


def test_a_reader_whose_loop_is_gone_is_dropped(thread: EngineThread) -> None:
    async def begin() -> Any:
        stream = thread.stream([request("orphan")])
        await anext(stream)
        return stream

    loop = asyncio.new_event_loop()
    stream = loop.run_until_complete(begin())
    loop.close()
    run(until_idle(thread))
    del stream
    assert np.isfinite(thread.stats.num_steps)


def test_who_completes_beside_the_thread_takes_nobodys_deltas(engine: Engine) -> None:
    (expected,) = complete_all(engine, [request("before")])
    thread = EngineThread(engine, probe_seconds=0.001)  # it steps by itself too, whenever it is idle
    thread.start()
    finished = threading.Event()

    def beside() -> list[Completion]:
        found: list[Completion] = []
        while not finished.is_set():
            found += complete_all(engine, [request(f"beside {len(found)} {index}") for index in range(3)])
        return found

    async def work() -> list[Completion]:
        found: list[Completion] = []
        for number in range(4):
            found += await thread.complete([request(f"{number} {index}") for index in range(2)])
        return found

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(beside)
        try:
            answers = run(work())
        finally:
            finished.set()
        answers += asked.result(60)
    thread.stop()
    assert len(answers) >= 11
    assert {answer.token_ids for answer in answers} == {expected.token_ids}
    (after,) = complete_all(engine, [request("after")])
    assert after.token_ids == expected.token_ids
    assert engine.stats.free_blocks == engine.stats.total_blocks


def test_beside_the_thread_a_fault_is_the_askers(engine: Engine, thread: EngineThread) -> None:
    async def work() -> None:
        async with aclosing(thread.stream([request("a")])) as deltas:
            await anext(deltas)
            with pytest.raises(RequestError, match="empty"):
                await asyncio.to_thread(complete_all, engine, [request("b"), Request("bad", (), LONG)])
            rest = [delta async for delta in deltas]
        assert rest[-1].completion is not None
        assert len(rest[-1].completion.token_ids) == 200
        await until_idle(thread)

    run(work())
    assert thread.num_open == 0


class LostEngine(Engine):
    """Breaks where the thread does not expect it."""

    def abort(self, request_id: str) -> Delta | None:
        raise KeyError(request_id)

    def step(self) -> list[Delta]:
        raise IndexError("a fault of ours")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_itself_breaks_all_who_wait_are_told() -> None:
    engine = LostEngine(TorchBackend(make_model(make_config())))
    thread = EngineThread(engine)
    thread.start()

    async def work() -> None:
        asked: Sequence[Any] = await asyncio.gather(
            thread.complete([request("a")]),
            asyncio.to_thread(complete_all, engine, [request("b")]),
            return_exceptions=True,
        )
        assert all(isinstance(item, EngineError) for item in asked), asked
        while thread.is_alive:  # noqa: ASYNC110 - a thread tells no loop of its end
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="stopping"):
            await thread.complete([request("c")])

    run(work())
    assert thread.num_open == 0
    thread.stop()
