# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of what is now: the engines, the models, and the checks of their answers, read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from open_autoglm.engine.stats import EngineStats, ModelState
from open_autoglm.serve.models.model_client import ModelStatus
from open_autoglm.serve.watching.answer_checks import AnswerChecks
from open_autoglm.serve.watching.request_metrics import PREFIX

_STATES: Final = get_args(ModelState)
_ENGINE_GAUGES: Final[tuple[tuple[str, str, Callable[[EngineStats], float]], ...]] = (
    ("engine_waiting_sequences", "Sequences that wait for memory or a place in a step.", lambda s: s.num_waiting),
    ("engine_running_sequences", "Sequences that hold memory, which is the batch.", lambda s: s.num_running),
    ("kv_cache_blocks", "Blocks of the KV cache.", lambda s: s.total_blocks),
    ("kv_cache_used_blocks", "Blocks that sequences hold.", lambda s: s.total_blocks - s.free_blocks),
    ("kv_cache_reusable_blocks", "Free blocks with tokens that a prompt may begin with.", lambda s: s.cached_blocks),
    (
        "kv_cache_usage_ratio",
        "The share of blocks that sequences hold.",
        lambda s: (s.total_blocks - s.free_blocks) / s.total_blocks if s.total_blocks else 0.0,
    ),
)  # fmt: skip
_ENGINE_COUNTERS: Final[tuple[tuple[str, str, Callable[[EngineStats], float]], ...]] = (
    ("engine_steps", "Steps that the engine computed.", lambda s: s.num_steps),
    ("engine_step_sequences", "Sequences of all steps; by the steps, the mean batch.", lambda s: s.num_scheduled),
    ("engine_preemptions", "Sequences that gave up their memory to others.", lambda s: s.num_preemptions),
    ("prefix_cache_hit_tokens", "Tokens found in the KV cache instead of computed.", lambda s: s.num_cached_tokens),
)
"""Counted since the engine's process began, so they start again at 0 with it, as Prometheus expects of counters."""
_MODEL_COUNTERS: Final[tuple[tuple[str, str, Callable[[ModelStatus], float]], ...]] = (
    ("model_loads", "How often the model was loaded for those who asked for it.", lambda s: s.num_loads),
    ("model_evictions", "How often the model left to make room.", lambda s: s.num_evictions),
    ("worker_restarts", "How often the model's process ended and was started again.", lambda s: s.num_restarts),
)  # fmt: skip


class StateCollector(Collector):
    """Reads the states of the models, and what the checks have found. statuses: is called each time."""

    def __init__(self, statuses: Callable[[], Sequence[ModelStatus]], checks: AnswerChecks) -> None:
        self._statuses, self._checks = statuses, checks

    def collect(self) -> Iterator[Metric]:
        """All metrics, with a sample for each model that has them."""
        statuses = self._statuses()
        yield from _of_engines(statuses)
        yield from _of_models(statuses)
        yield from _of_answers(self._checks)

    def describe(self) -> list[Metric]:
        """Nothing: the models need not be asked just to be registered."""
        return []


def _of_engines(statuses: Sequence[ModelStatus]) -> Iterator[Metric]:
    for name, about, read in _ENGINE_GAUGES:
        gauge = GaugeMetricFamily(PREFIX + name, about, labels=["model"])
        for status in statuses:
            if status.stats is not None:
                gauge.add_metric([status.name], read(status.stats))
        yield gauge
    for name, about, read in _ENGINE_COUNTERS:
        counter = CounterMetricFamily(PREFIX + name, about, labels=["model"])
        for status in statuses:
            if status.stats is not None:
                counter.add_metric([status.name], read(status.stats))
        yield counter


def _of_models(statuses: Sequence[ModelStatus]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        PREFIX + "model_state", "1 for the state that the model is in.", labels=["model", "state"]
    )
    ready = GaugeMetricFamily(
        PREFIX + "model_ready", "Whether the model has computed a step within the last seconds.", labels=["model"]
    )
    queue = GaugeMetricFamily(PREFIX + "open_answers", "Answers that somebody waits for.", labels=["model"])
    for status in statuses:
        for known in _STATES:
            state.add_metric([status.name, known], float(status.state == known))
        ready.add_metric([status.name], float(status.is_ready))
        queue.add_metric([status.name], status.num_open)
    yield from (state, ready, queue)
    for name, about, read in _MODEL_COUNTERS:
        counter = CounterMetricFamily(PREFIX + name, about, labels=["model"])
        for status in statuses:
            counter.add_metric([status.name], read(status))
        yield counter


def _of_answers(checks: AnswerChecks) -> Iterator[Metric]:
    checked = CounterMetricFamily(
        PREFIX + "answers_checked", "Answers that had a form to keep to, such as labels or JSON.", labels=["model"]
    )
    illegal = CounterMetricFamily(
        PREFIX + "illegal_answers", "Answers that broke their form, by how.", labels=["model", "fault"]
    )
    share = GaugeMetricFamily(
        PREFIX + "illegal_answers_ratio", "The share of illegal ones among the newest answers.", labels=["model"]
    )
    length = GaugeMetricFamily(
        PREFIX + "answer_mean_tokens", "Tokens of an answer, the mean of the newest.", labels=["model"]
    )
    logprob = GaugeMetricFamily(
        PREFIX + "answer_mean_logprob_nats",
        "Log-probability of an answer's tokens, the mean of the newest whose tokens were scored.",
        labels=["model"],
    )
    index = GaugeMetricFamily(
        PREFIX + "answer_stability_index",
        "Population stability index of the newest answers against the first; 0.25 is taken for a change.",
        labels=["model", "measure"],
    )
    shift = GaugeMetricFamily(
        PREFIX + "answer_mean_shift_sigmas",
        "How far the mean of the newest answers is from that of the first, in standard errors.",
        labels=["model", "measure"],
    )
    drifted = GaugeMetricFamily(
        PREFIX + "answers_drifted", "Whether the newest answers are unlike the first.", labels=["model", "measure"]
    )
    for name, found in list(checks.models.items()):  # a request may add one meanwhile
        checked.add_metric([name], found.num_checked)
        for fault, count in found.faults.items():
            illegal.add_metric([name, fault], count)
        if found.illegal is not None:
            share.add_metric([name], found.illegal)
        for measure, drift in found.measures.items():
            mean, stability, moved = drift.mean, drift.stability_index, drift.shift
            if mean is not None:
                (length if measure == "tokens" else logprob).add_metric([name], mean)
            if stability is not None and moved is not None:
                index.add_metric([name, measure], stability)
                shift.add_metric([name, measure], moved)
                drifted.add_metric([name, measure], float(drift.has_drifted))
    yield from (checked, illegal, share, length, logprob, index, shift, drifted)
