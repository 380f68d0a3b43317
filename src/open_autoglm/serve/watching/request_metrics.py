# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of requests, counted when each has ended. The number of series is bounded by the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from open_autoglm.serve.watching.request_record import ERROR_KINDS, RequestRecord

PREFIX: Final = "open_autoglm_"

_SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_TOKEN_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_FINISH_REASONS: Final = ("stop", "length", "tool_calls")


@dataclass(frozen=True)
class _OfModel:
    """The series of one model."""

    first_token: Any
    per_token: Any
    queued: Any
    prompt: Any
    completion: Any
    cached: Any
    length: Any
    aborted: Any


class RequestMetrics:
    """What requests were like, in a registry of its own.

    Models are told apart by the names under which they are served, paths by their route, other paths are one.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, about, labels, registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(PREFIX + name, about, labels, registry=registry, buckets=buckets)

        self._requests = counter("requests_total", "Requests that have ended.", "protocol", "method", "route", "status")
        self._durations = histogram(
            "request_duration_seconds", "From a request to the end of its answer.", _SECONDS, "route"
        )
        self._in_flight = Gauge(PREFIX + "requests_in_flight", "Requests that are being answered.", registry=registry)
        self._errors = counter("request_errors_total", "Requests that failed, by what was wrong.", "kind")
        self._rate_limited = counter("rate_limited_requests_total", "Requests beyond a limit of their caller.", "route")
        self._cache = counter(
            "response_cache_requests_total", "Requests whose answer could be in the cache, by whether it was.", "result"
        )
        self._aborted = counter(
            "aborted_requests_total",
            "Requests given up before their end: the client left, or the time was up.",
            "model",
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "From a request to the first token of its answer.", _SECONDS, "model"
        )
        self._per_token = histogram(
            "time_per_output_token_seconds",
            "The mean time between the tokens of an answer after the first.",
            _TOKEN_SECONDS,
            "model",
        )
        self._queued = histogram(
            "queue_duration_seconds", "How long an answer waited in the engine for its first step.", _SECONDS, "model"
        )
        self._prompt = counter("prompt_tokens_total", "Tokens of prompts.", "model")
        self._cached = counter(
            "cached_prompt_tokens_total", "Tokens of prompts that were computed before, for another request.", "model"
        )
        self._completion = counter("completion_tokens_total", "Tokens of answers, also of those given up.", "model")
        self._length = histogram("answer_length_tokens", "Tokens of an answer that came to its end.", _TOKENS, "model")
        self._finished = counter("answers_total", "Answers that came to their end, by how.", "model", "reason")
        self._models: dict[str, _OfModel] = {}
        self._request_series: dict[tuple[str, str, str, int], tuple[Any, Any]] = {}
        self.num_in_flight = 0
        self._in_flight.set_function(lambda: float(self.num_in_flight))
        for kind in ERROR_KINDS:
            self._errors.labels(kind)
        for result in ("hit", "miss"):
            self._cache.labels(result)

    def begin(self) -> None:
        """A request has come."""
        self.num_in_flight += 1

    def end(self, record: RequestRecord) -> None:
        """A request has ended."""
        self.num_in_flight -= 1
        method = record.method if record.method in _METHODS or record.protocol != "http" else "other"
        key = (record.protocol, method, record.route, record.status)
        series = self._request_series.get(key)
        if series is None:
            series = self._requests.labels(*key), self._durations.labels(record.route)
            self._request_series[key] = series
        series[0].inc()
        series[1].observe(record.total_seconds)
        if record.error is not None:
            self._errors.labels(record.error).inc()
        if record.status == 429:
            self._rate_limited.labels(record.route).inc()
        if record.cache is not None:
            self._cache.labels(record.cache).inc()
        if record.model is not None:
            self._count_model(record, self.of_model(record.model))

    def of_model(self, name: str) -> _OfModel:
        """The series of a model, which are there, at 0, from the first time that they are asked for."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = _OfModel(
                first_token=self._first_token.labels(name),
                per_token=self._per_token.labels(name),
                queued=self._queued.labels(name),
                prompt=self._prompt.labels(name),
                completion=self._completion.labels(name),
                cached=self._cached.labels(name),
                length=self._length.labels(name),
                aborted=self._aborted.labels(name),
            )
            for reason in _FINISH_REASONS:
                self._finished.labels(name, reason)
        return found

    def _count_model(self, record: RequestRecord, series: _OfModel) -> None:
        tokens = record.tokens
        series.prompt.inc(tokens.prompt)
        series.completion.inc(tokens.completion)
        series.cached.inc(tokens.cached)
        if record.aborted:
            series.aborted.inc()
        if (seconds := record.first_token_seconds) is not None:
            series.first_token.observe(seconds)
        for _, choice in record.answers:
            self._finished.labels(record.model, choice.finish_reason).inc()
            count = 0 if choice.usage is None else choice.usage.completion_tokens
            series.length.observe(count)
            times = choice.times
            if times is not None:
                series.queued.observe(max(0.0, times.scheduled - times.queued))
                if count > 1:
                    series.per_token.observe(max(0.0, times.last_token - times.first_token) / (count - 1))
