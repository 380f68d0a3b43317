# SPDX-License-Identifier: Apache-2.0
"""Scheduling under random loads: nothing leaks, budgets hold, everyone finishes, aborts free everything."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from open_autoglm.engine.block_pool import BlockPool
from open_autoglm.engine.scheduler import Chunk, Scheduler, Sequence
from open_autoglm.errors import EngineError

JOBS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(-1, 1)), min_size=1, max_size=14)


def run_step(scheduler: Scheduler, goals: dict[str, int]) -> tuple[list[Chunk], list[str]]:
    """One step: compute, append a token to each sequence whose tokens are all computed, drop the finished."""
    chunks = scheduler.schedule()
    scheduler.advance(chunks)
    done = []
    for chunk in chunks:
        if chunk.is_last:
            chunk.sequence.token_ids.append(7)
            if len(chunk.sequence.token_ids) >= goals[chunk.sequence.id]:
                scheduler.remove(chunk.sequence)
                done.append(chunk.sequence.id)
    return chunks, done


@settings(max_examples=200, deadline=None)
@given(JOBS, st.integers(1, 5), st.integers(1, 40), st.integers(1, 6), st.integers(0, 30))
def test_every_request_finishes_and_no_block_is_lost(
    jobs: list[tuple[int, int, int]], block_size: int, budget: int, places: int, spare: int
) -> None:
    largest = max(-(-(prompt + answer) // block_size) for prompt, answer, _ in jobs)
    pool = BlockPool(largest + spare, block_size)
    scheduler = Scheduler(pool, max_batch_tokens=budget, max_sequences=places)
    goals: dict[str, int] = {}
    computed: dict[str, set[int]] = {}
    for index, (prompt, answer, priority) in enumerate(jobs):
        sequence = Sequence(str(index), [1] * prompt, priority)
        goals[sequence.id] = prompt + answer
        scheduler.add(sequence)
    finished: list[str] = []
    for _ in range(40_000):
        chunks, done = run_step(scheduler, goals)
        finished += done
        pool.check()
        assert sum(chunk.length for chunk in chunks) <= budget
        assert len(chunks) <= places
        assert len({chunk.sequence.id for chunk in chunks}) == len(chunks)
        for chunk in chunks:
            seen = computed.setdefault(chunk.sequence.id, set())
            if chunk.start == 0:
                seen.clear()  # from the beginning, maybe again
            assert len(seen) == chunk.start, "tokens are computed in order, none twice or left out"
            seen.update(range(chunk.start, chunk.start + chunk.length))
        if not chunks:
            break
    assert sorted(finished) == sorted(goals)
    assert pool.num_free == pool.num_blocks
    assert scheduler.num_running == scheduler.num_waiting == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=12), st.integers(1, 30))
def test_equal_requests_are_served_first_come_first_served(prompts: list[int], budget: int) -> None:
    """With one place, the order of finishing is the order of arrival, whatever the sizes."""
    scheduler = Scheduler(BlockPool(16, 2), max_batch_tokens=budget, max_sequences=1)
    goals = {}
    for index, prompt in enumerate(prompts):
        scheduler.add(Sequence(str(index), [1] * prompt))
        goals[str(index)] = prompt + 2
    finished: list[str] = []
    while (step := run_step(scheduler, goals))[0]:
        finished += step[1]
    assert finished == [str(index) for index in range(len(prompts))]


def test_decodes_go_on_while_a_long_prompt_is_computed_in_chunks() -> None:
    scheduler = Scheduler(BlockPool(100, 4), max_batch_tokens=8, max_sequences=4)
    goals = {"short": 40, "long": 101}
    scheduler.add(Sequence("short", [1, 2]))
    run_step(scheduler, goals)
    scheduler.add(Sequence("long", [1] * 100))
    for _ in range(14):
        chunks, _ = run_step(scheduler, goals)
        assert [(chunk.sequence.id, chunk.length) for chunk in chunks] == [("short", 1), ("long", 7)]


def test_the_latest_of_the_lowest_priority_is_preempted_and_comes_back() -> None:
    pool = BlockPool(6, 2)
    scheduler = Scheduler(pool, max_batch_tokens=100, max_sequences=4)
    goals = {"important": 9, "early": 9, "late": 9}
    scheduler.add(Sequence("early", [1] * 4, priority=1))
    scheduler.add(Sequence("late", [1] * 4, priority=1))
    scheduler.add(Sequence("important", [1] * 4, priority=0))
    chunks, _ = run_step(scheduler, goals)
    assert [chunk.sequence.id for chunk in chunks] == ["important", "early", "late"]
    chunks, _ = run_step(scheduler, goals)
    assert [chunk.sequence.id for chunk in chunks] == ["important", "early"]
    assert scheduler.num_preemptions == 1
    finished = []
    while (step := run_step(scheduler, goals))[0]:
        finished += step[1]
    assert finished == ["important", "early", "late"]


def test_a_large_request_at_the_head_is_not_passed_over() -> None:
    scheduler = Scheduler(BlockPool(10, 1), max_batch_tokens=100, max_sequences=8)
    goals = {"running": 8, "large": 10, "small": 2}
    scheduler.add(Sequence("running", [1] * 5))
    run_step(scheduler, goals)
    scheduler.add(Sequence("large", [1] * 9))
    scheduler.add(Sequence("small", [1]))
    chunks, _ = run_step(scheduler, goals)
    assert [chunk.sequence.id for chunk in chunks] == ["running"]


@pytest.mark.parametrize("blocks", [[0], [9], [1, 1]])
def test_a_block_is_given_back_once_by_its_holder_only(blocks: list[int]) -> None:
    pool = BlockPool(4, 2)
    taken = pool.allocate(2)
    with pytest.raises(EngineError):
        pool.free([block for block in blocks if block not in taken] or [taken[0], taken[0]])
    with pytest.raises(EngineError, match="2 free blocks, 3"):
        BlockPool(2, 1).allocate(3)


class AbortsAtAnyMoment(RuleBasedStateMachine):
    """Adds, steps and aborts in any order; the books are always right, and when all is gone all blocks are free."""

    @initialize(blocks=st.integers(12, 30), budget=st.integers(1, 20), places=st.integers(1, 5))
    def begin(self, blocks: int, budget: int, places: int) -> None:
        self.pool = BlockPool(blocks, 3)
        self.scheduler = Scheduler(self.pool, max_batch_tokens=budget, max_sequences=places)
        self.alive: dict[str, Sequence] = {}
        self.goals: dict[str, int] = {}
        self.count = 0

    @rule(prompt=st.integers(1, 25), answer=st.integers(1, 11), priority=st.integers(0, 2))
    def add(self, prompt: int, answer: int, priority: int) -> None:
        sequence = Sequence(str(self.count), [1] * prompt, priority)
        self.count += 1
        self.alive[sequence.id] = sequence
        self.goals[sequence.id] = prompt + answer
        self.scheduler.add(sequence)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        sequence = self.alive.pop(name)
        self.scheduler.remove(sequence)
        assert not sequence.blocks

    @rule()
    def step(self) -> None:
        _, done = run_step(self.scheduler, self.goals)
        for name in done:
            del self.alive[name]

    @invariant()
    def books_add_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        held = [block for sequence in self.alive.values() for block in sequence.blocks]
        assert len(held) == len(set(held)) == self.pool.num_blocks - self.pool.num_free
        assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.alive)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            for sequence in list(self.alive.values()):
                self.scheduler.remove(sequence)
            assert self.pool.num_free == self.pool.num_blocks


AbortsAtAnyMoment.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAborts = AbortsAtAnyMoment.TestCase
