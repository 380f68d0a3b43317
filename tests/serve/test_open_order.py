# SPDX-License-Identifier: Apache-2.0
"""Whoever waits for an answer: woken for what comes, never lost, and never given more than memory holds."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from open_autoglm.engine.orders import Piece, TokenScore, Usage
from open_autoglm.errors import EngineError
from open_autoglm.serve.models.open_order import MAX_UNREAD, OpenOrder
from tests.serve.process_tools import run

END = Piece(0, "", 1, [], "stop", Usage(1, 1))


async def read_all(order: OpenOrder) -> list[Piece]:
    found: list[Piece] = []
    while pieces := await order.read():
        found += pieces
    return found


@given(st.lists(st.lists(st.text(max_size=2), max_size=3), max_size=8), st.booleans())
def test_all_text_arrives_in_order(steps: list[list[str]], whole: bool) -> None:
    async def work() -> None:
        order = OpenOrder(1, whole=whole)
        reading = asyncio.create_task(read_all(order))
        for step in steps:
            order.add([Piece(0, text, 1) for text in step], is_last=False)
            await asyncio.sleep(0)
        order.add([END], is_last=True)
        pieces = await reading
        assert "".join(piece.text for piece in pieces) == "".join(text for step in steps for text in step)
        assert sum(piece.num_tokens for piece in pieces) == 1 + sum(map(len, steps))
        assert pieces[-1].finish_reason == "stop"
        assert not whole or len(pieces) == 1

    run(work())


def test_an_error_comes_after_what_was_said_before_it_and_only_once() -> None:
    async def work() -> None:
        order = OpenOrder(1, whole=False)
        order.add([Piece(0, "a", 1)], is_last=False)
        order.fail(EngineError("first"))
        order.fail(EngineError("second"))
        assert [piece.text for piece in await order.read()] == ["a"]
        with pytest.raises(EngineError, match="first"):
            await order.read()

    run(work())


def test_a_reader_that_does_not_read_is_given_up() -> None:
    async def work() -> None:
        order = OpenOrder(1, whole=False)
        scores = [TokenScore(b"x", -1.0, [(b"y", -2.0)] * 20) for _ in range(100)]
        count = 0
        while not order.has_failed:
            order.add([Piece(0, "x", 100, scores)], is_last=False)
            count += 1
            assert count * 100 * 20 * 8 < 4 * MAX_UNREAD, "more is kept than it says"
        await order.read()
        with pytest.raises(EngineError, match="not read as fast"):
            await order.read()

    run(work())
