# SPDX-License-Identifier: Apache-2.0
"""Thousands of requests, half of them aborted at random moments: nothing stays behind, on every backend that runs.

Every tenth asks for an embedding, every tenth for the scores of continuations.
"""

import random
from collections import Counter
from pathlib import Path

import pytest

from open_autoglm.engine import LLM, Delta, Request, SamplingParams
from open_autoglm.engine.backends import BACKENDS, availability
from open_autoglm.engine.guides import GuideSpec
from tests.thoroughness import times

# The others compute in Python, step by step, what native computes in C++: fewer requests take as long.
REQUESTS = {"native": times(3000, 10_000), "torch": times(2000, 10_000), "onnx": times(500, 1000)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_free_blocks_equal_total_after_many_requests_half_aborted(bundle: Path, backend: str) -> None:
    works, reason = availability(backend)
    if not works:
        pytest.skip(reason)
    generator = random.Random(11)
    count = REQUESTS[backend]
    with LLM(bundle, backend=backend, kv_blocks=150, max_sequences=48, max_batch_tokens=300, threads=1) as llm:
        engine = llm.engine
        guide = llm.compile_guide(GuideSpec.of("regex", "[a-c]{2,9}"), "")
        beginning = tuple(generator.randrange(7, 400) for _ in range(40))
        tree = tuple((first, second, 9) for first in range(7, 10) for second in range(7, 11))
        seen: Counter[str] = Counter()
        aborted_in: Counter[str] = Counter()
        alive: dict[str, str] = {}  # request -> how far it is

        def take(delta: Delta) -> None:
            assert delta.request_id in alive, "an aborted request says nothing more"
            alive[delta.request_id] = "decode"
            if delta.completion is not None:
                del alive[delta.request_id]
                seen[delta.completion.finish_reason] += 1

        added = steps = 0
        while added < count or engine.has_unfinished:
            while added < count and len(alive) < 90:
                shared = beginning[: generator.choice((0, 0, 16, 37))]
                prompt = shared + tuple(generator.randrange(7, 400) for _ in range(generator.randint(1, 20)))
                params = SamplingParams(
                    max_tokens=generator.randint(1, 8), ignore_eos=True, temperature=generator.choice((0.0, 1.0))
                )
                priority = generator.randint(0, 1)
                if added % 10 == 3:
                    request = Request(str(added), prompt, priority=priority, pooling=generator.choice(("mean", "last")))
                elif added % 10 == 7:
                    request = Request(str(added), prompt, priority=priority, continuations=tree)
                else:
                    own = guide.copy() if added % 50 == 0 else None
                    request = Request(str(added), prompt, params, guide=own, priority=priority)
                engine.add_request(request)
                alive[str(added)] = "queue or prefill"
                added += 1
            for delta in engine.step():
                take(delta)
            steps += 1
            # About as many as finish by themselves are aborted, wherever they are.
            while alive and sum(aborted_in.values()) < added // 2 and generator.random() < 0.9:
                name = generator.choice(list(alive))
                where = alive.pop(name)
                last = engine.abort(name)
                assert last is not None
                assert last.completion is not None
                assert last.completion.finish_reason == "abort"
                aborted_in[where] += 1
        stats = engine.stats
        assert stats.free_blocks == stats.total_blocks == 150
        assert stats.num_running == stats.num_waiting == 0
        assert stats.num_cached_tokens > count, "prefixes were shared meanwhile"
        assert sum(seen.values()) + sum(aborted_in.values()) == count
        assert sum(aborted_in.values()) > 0.3 * count
        assert min(aborted_in["queue or prefill"], aborted_in["decode"]) > count / 20
        assert seen["error"] == 0
        engine._pool.check()  # the books of the cache itself
