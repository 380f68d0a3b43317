# SPDX-License-Identifier: Apache-2.0
"""/metrics: read by Prometheus' own parser, its values those of a scripted run, its labels few, its route guarded."""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from open_autoglm.serve.guards.guard_settings import AccessSettings, CacheSettings, RateSettings
from open_autoglm.serve.models.model_pool import ModelEntry, ModelPool, PoolLimits
from open_autoglm.serve.models.worker_process import ModelSource
from open_autoglm.serve.routes.openapi_document import openapi_document
from open_autoglm.serve.watching.answer_checks import AnswerChecks
from open_autoglm.serve.watching.watch import Watch
from open_autoglm.serve.watching.watch_gate import RouteNames
from open_autoglm.serve.watching.watch_settings import WatchSettings
from tests.engine.tiny_bundle import make_bundle
from tests.serve.conftest import Running, serving
from tests.serve.process_tools import order, run, wait_until
from tests.serve.test_api_keys import make

PREFIX = "open_autoglm_"
QUICK_CLIENT: dict[str, Any] = {"verify": False, "timeout": 30}  # reading certificates takes longer than a request
get = functools.partial(httpx.get, **QUICK_CLIENT)
post = functools.partial(httpx.post, **QUICK_CLIENT)
request = functools.partial(httpx.request, **QUICK_CLIENT)


class Samples:
    """What /metrics says, by name and labels."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in parser.text_string_to_metric_families(text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float | None:
        return self._values.get((PREFIX + name, frozenset(labels.items())))

    def all(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        return {labels: value for (own, labels), value in self._values.items() if own == PREFIX + name}

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(labels)[label] for labels in self.all(name)}

    def total(self, name: str) -> float:
        return sum(self.all(name).values())


def read(url: str, **headers: str) -> Samples:
    response = get(f"{url}/metrics", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return Samples(response.text)


def read_when_told(url: str, count: int, **headers: str) -> Samples:
    """Once so many requests besides the reading of metrics have been told of: that is just after they are answered."""

    def others() -> float:
        samples = read(url, **headers)
        return sum(
            value for labels, value in samples.all("requests_total").items() if ("route", "/metrics") not in labels
        )

    wait_until(lambda: others() == count)
    return read(url, **headers)


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "ignore_eos": True, **fields}


@pytest.fixture(scope="module")
def fresh(dialogue_bundle: Path) -> Iterator[Running]:
    with serving(dialogue_bundle, max_choices=8) as running:
        yield running


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_the_values_are_those_of_a_scripted_run(fresh: Running) -> None:
    prompt = completion = cached = answers = 0

    def count(usage: Mapping[str, Any]) -> None:
        nonlocal prompt, completion, cached
        prompt += usage["prompt_tokens"]
        completion += usage.get("completion_tokens", 0)
        cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)

    for number in (1, 2, 3):
        found = fresh.post(body(n=number, max_tokens=4 * number))
        count(found.json()["usage"])
        answers += number
    for _ in range(2):
        found = fresh.post(body(n=2, stream=True, stream_options={"include_usage": True}))
        count(events_of(found)[-1]["usage"])
        answers += 2
    texts = {"prompt": ["play the song", "book a table"], "n": 2, "max_tokens": 1, "ignore_eos": True}
    count(post(f"{fresh.url}/v1/completions", json=texts).json()["usage"])
    answers += 4
    count(post(f"{fresh.url}/v1/embeddings", json={"input": ["a", "b"]}).json()["usage"])
    assert post(f"{fresh.url}/tokenize", json={"prompt": "a"}).status_code == 200
    assert fresh.post(body(max_tokens=0)).status_code == 400
    assert fresh.post(body(model="other")).status_code == 404
    for path in ("/x", "/x/y", "/v2/chat", "/v1/models/unknown", "/playground/none.js"):
        assert get(fresh.url + path).status_code == 404
    assert get(f"{fresh.url}/v1/chat/completions").status_code == 405
    assert request("PROPFIND", f"{fresh.url}/health").status_code == 405

    samples = read_when_told(fresh.url, 3 + 2 + 1 + 1 + 1 + 2 + 5 + 2)
    requests = Counter(
        {tuple(sorted(dict(key).items())): value for key, value in samples.all("requests_total").items()}
    )

    def requests_of(method: str, route: str, status: int) -> float:
        return requests[("method", method), ("protocol", "http"), ("route", route), ("status", str(status))]

    chat = "/v1/chat/completions"
    assert [requests_of("POST", chat, status) for status in (200, 400, 404)] == [5, 1, 1]
    assert requests_of("GET", chat, 405) == 1
    assert requests_of("other", "/health", 405) == 1
    assert requests_of("POST", "/v1/completions", 200) == 1
    assert requests_of("POST", "/v1/embeddings", 200) == 1
    assert requests_of("POST", "/tokenize", 200) == 1
    assert requests_of("GET", "other", 404) == 3
    assert requests_of("GET", "/v1/models/{model_id}", 404) == 1
    assert requests_of("GET", "/playground/{name}", 404) == 1
    assert samples.get("request_errors_total", kind="invalid_request") == 3  # one 400 and two 405
    assert samples.get("request_errors_total", kind="not_found") == 6
    assert samples.get("request_errors_total", kind="internal") == 0
    assert samples.get("request_duration_seconds_count", route=chat) == 8
    assert samples.get("requests_in_flight") == 1  # the one that reads this

    assert samples.get("prompt_tokens_total", model="talker") == prompt
    assert samples.get("completion_tokens_total", model="talker") == completion == (4 + 16 + 36) + 20 + 4
    assert samples.get("cached_prompt_tokens_total", model="talker") == cached
    assert samples.get("answers_total", model="talker", reason="length") == answers == 14
    assert samples.get("answers_total", model="talker", reason="stop") == 0
    assert samples.get("time_to_first_token_seconds_count", model="talker") == 6
    assert samples.get("time_per_output_token_seconds_count", model="talker") == 10  # not those of one token
    assert samples.get("queue_duration_seconds_count", model="talker") == 14
    assert samples.get("answer_length_tokens_sum", model="talker") == completion
    assert samples.get("aborted_requests_total", model="talker") == 0
    first = samples.get("time_to_first_token_seconds_sum", model="talker")
    total = samples.get("request_duration_seconds_sum", route=chat)
    assert first is not None
    assert total is not None
    assert 0 < first < 60
    assert 0 < total < 60

    stats = fresh.model.stats
    for name, value in (
        ("kv_cache_blocks", stats.total_blocks), ("kv_cache_used_blocks", 0), ("kv_cache_usage_ratio", 0),
        ("engine_running_sequences", 0), ("engine_waiting_sequences", 0), ("open_answers", 0), ("model_ready", 1),
        ("engine_preemptions_total", stats.num_preemptions), ("worker_restarts_total", 0), ("model_loads_total", 1),
        ("prefix_cache_hit_tokens_total", stats.num_cached_tokens),
    ):  # fmt: skip
        assert samples.get(name, model="talker") == value, name
    steps = samples.get("engine_steps_total", model="talker")
    sequences = samples.get("engine_step_sequences_total", model="talker")
    assert steps is not None
    assert sequences is not None
    assert sequences >= completion, "each token was computed for a sequence in a step"
    assert steps < sequences
    assert samples.get("model_state", model="talker", state="ready") == 1
    assert sum(samples.all("model_state").values()) == 1


def test_there_are_few_series_whatever_is_asked_for(fresh: Running) -> None:
    with httpx.Client(base_url=fresh.url) as client:
        for number in range(40):
            assert client.post("/v1/chat/completions", json=body(model=f"m{number}")).status_code == 404
            assert client.get(f"/{number}", headers={"X-Request-Id": str(number)}).status_code == 404
            method = ("PROPFIND", "MKCOL", "PURGE", "LINK", "REPORT")[number % 5]
            assert client.request(method, "/v1/models").status_code == 405
            assert client.request(f"X{number}", "/v1/models").status_code == 400, "no HTTP that the parser knows"
    samples = read(fresh.url)
    assert samples.labels("requests_total", "route") <= {
        "other", "/v1/models/{model_id}", "/playground/{name}", *known_paths(),
    }  # fmt: skip
    assert samples.labels("requests_total", "method") <= {"GET", "POST", "other"}
    assert samples.labels("prompt_tokens_total", "model") == {"talker"}
    assert sum(len(family.samples) for family in samples.families.values()) < 1000


def known_paths() -> set[str]:
    """The paths of our document, and those of pages."""
    return {*openapi_document()["paths"], "/", "/docs", "/openapi.json", "/metrics"}


def test_names_are_those_that_prometheus_wants(fresh: Running) -> None:
    fresh.post(body())
    text = get(f"{fresh.url}/metrics").text
    for family in Samples(text).families.values():
        assert family.documentation, family.name
        assert family.name.startswith((PREFIX, "process_")), family.name
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_tokens")), family.name
    accept = "application/openmetrics-text; version=1.0.0"
    response = get(f"{fresh.url}/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    families = list(openmetrics_parser.text_string_to_metric_families(response.text))
    assert any(family.name == f"{PREFIX}requests" for family in families)


def test_who_may_read_them(dialogue_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    reader, _ = make(keys, scopes=["metrics"])
    talker, _ = make(keys, scopes=["chat"])
    access = AccessSettings(api_keys=str(keys))
    with serving(dialogue_bundle, access=access, rates=RateSettings(requests_per_minute=3)) as running:
        assert get(f"{running.url}/metrics").status_code == 401
        assert get(f"{running.url}/metrics", headers={"Authorization": f"Bearer {talker}"}).status_code == 403
        headers = {"Authorization": f"Bearer {talker}"}
        codes = [running.post(body(), headers=headers).status_code for _ in range(5)]
        assert sorted(codes) == [200, 200, 200, 429, 429]
        samples = read_when_told(running.url, 5, Authorization=f"Bearer {reader}")
        assert samples.get("rate_limited_requests_total", route="/v1/chat/completions") == 2
        assert samples.get("request_errors_total", kind="rate_limit") == 2
        assert samples.get("request_errors_total", kind="authentication") == 1
        assert samples.get("request_errors_total", kind="permission") == 1
    public = WatchSettings(metrics_public=True)
    with serving(dialogue_bundle, access=access, watching=public) as running:
        read(running.url)
        assert post(f"{running.url}/metrics").status_code == 401
        for path in ("/metrics/", "/metrics/x", "/v1/models", "//metrics", "/docs"):
            assert get(running.url + path).status_code == 401


def test_caches_and_scored_answers(extraction_bundle: Path) -> None:
    settings = {"cache": CacheSettings(cache="memory"), "watching": WatchSettings(score_share=1.0)}
    sent = {"messages": [{"role": "user", "content": "play the song"}], "temperature": 0, "max_tokens": 60}
    with serving(extraction_bundle, **settings) as running:
        first, again = running.post(sent), running.post(sent)
        assert first.json()["choices"] == again.json()["choices"]
        assert first.json()["choices"][0]["logprobs"] is None, "scored for us, not for the client"
        streamed = [
            event["choices"][0] for event in events_of(running.post({**sent, "stream": True})) if event["choices"]
        ]
        assert all(choice["logprobs"] is None for choice in streamed)
        text = "".join(choice["delta"].get("content") or "" for choice in streamed)
        assert text == first.json()["choices"][0]["message"]["content"]
        asked = running.post({**sent, "logprobs": True}).json()["choices"][0]["logprobs"]["content"]
        cut = running.post({**sent, "max_tokens": 2}).json()["choices"][0]
        assert cut["finish_reason"] == "length"
        samples = read_when_told(running.url, 5)
        assert samples.get("response_cache_requests_total", result="hit") == 1
        assert samples.get("response_cache_requests_total", result="miss") == 3
        name = running.llm.name
        assert samples.get("answers_checked_total", model=name) == 4
        assert samples.get("illegal_answers_total", model=name, fault="cut") == 1
        assert samples.get("illegal_answers_total", model=name, fault="not_json") == 0
        assert samples.get("illegal_answers_ratio", model=name) == 0.25
        logprobs = [item["logprob"] for item in asked]
        mean, cut_mean = sum(logprobs) / len(logprobs), sum(logprobs[:2]) / 2
        assert samples.get("answer_mean_logprob_nats", model=name) == pytest.approx((3 * mean + cut_mean) / 4, abs=1e-3)
        assert samples.get("answer_stability_index", model=name, measure="tokens") is None, "too few so far"


def test_drift_is_a_gauge_and_told_once(fresh: Running, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> Samples:
        checks = AnswerChecks(reference=20, window=20)
        models = fresh_models(fresh)
        watch = Watch(models, WatchSettings(), checks=checks)
        for tokens in (*[2] * 10, *[3] * 30, *[30] * 30):
            await ask(watch, models, tokens)
        return Samples((await watch.exposition(""))[0].decode())

    samples = run(work())
    assert samples.get("answers_drifted", model="talker", measure="tokens") == 1
    index = samples.get("answer_stability_index", model="talker", measure="tokens")
    shift = samples.get("answer_mean_shift_sigmas", model="talker", measure="tokens")
    mean = samples.get("answer_mean_tokens", model="talker")
    assert index is not None
    assert shift is not None
    assert mean is not None
    assert index > 0.25
    assert shift > 3
    assert 25 < mean < 30
    [line] = [item for item in caplog.messages if "drifted" in item]
    assert "talker" in line
    assert "2.5" in line


def fresh_models(running: Running) -> Any:
    from open_autoglm.serve.models.model_client import OneModel

    return OneModel(running.model, "talker", 0)


async def ask(watch: Watch, models: Any, tokens: int) -> None:
    from open_autoglm.serve.watching.watched_models import watched

    record = watch.begin(protocol="test", method="", route="ask")
    async with watched(models, record).use("talker") as model:
        await model.answer(order(max_tokens=tokens))
    record.status = 200
    watch.end(record, "someone")


def test_loads_and_evictions_of_a_pool(dialogue_bundle: Path, tmp_path: Path) -> None:
    second = make_bundle(tmp_path, name="second")

    async def work() -> Samples:
        entries = [
            ModelEntry(name, ModelSource(str(folder), {"threads": 1}))
            for name, folder in (("a", dialogue_bundle), ("b", second))
        ]
        pool = ModelPool(entries, max_queued=100, limits=PoolLimits(max_loaded=1))
        watch = Watch(pool, WatchSettings())
        await pool.start()
        try:
            for name in ("a", "b", "a"):
                async with pool.use(name) as model:
                    await asyncio.wait_for(model.answer(order(max_tokens=2)), 60)
            return Samples((await watch.exposition(""))[0].decode())
        finally:
            await pool.stop()

    samples = run(work())
    assert [samples.get("model_loads_total", model=name) for name in "ab"] == [2, 1]
    assert [samples.get("model_evictions_total", model=name) for name in "ab"] == [1, 1]
    assert samples.get("model_state", model="b", state="not loaded") == 1
    assert samples.get("kv_cache_blocks", model="b") is None


def test_paths_become_templates() -> None:
    from starlette.routing import Route

    async def nothing(*_: Any) -> None: ...

    names = RouteNames([Route("/a", nothing), Route("/m/{name:path}", nothing), Route("/p/{x}/q", nothing)])
    assert [names.of(path) for path in ("/a", "/a/", "/m/x/y", "/m", "/p/1/q", "/%0a", "")] == [
        "/a", "other", "/m/{name}", "other", "/p/{x}/q", "other", "other",
    ]  # fmt: skip
