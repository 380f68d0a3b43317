# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: the deciding metric, all metrics, and how sure each is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from open_autoglm.metrics import ChosenMetric, Resampled, confidence_interval
from open_autoglm.task import Task


@dataclass(frozen=True)
class Evaluation:
    """The deciding metric's `value` over `n` examples, and all metrics.

    intervals: of each metric, the bounds of its 95% confidence interval by bootstrap over the examples; empty where
    none were asked for.
    """

    metric: str
    value: float
    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, samples: Mapping[str, Resampled], *, with_intervals: bool = True) -> Evaluation:
        """The values of all metrics, and their intervals."""
        values = {name: found.value for name, found in samples.items()}
        intervals = {name: confidence_interval(found) for name, found in samples.items()} if with_intervals else {}
        return cls(task.metric, values[task.metric], next(iter(samples.values())).count, values, intervals)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The deciding metric's bounds."""
        return self.intervals.get(self.metric)

    def with_others(self, samples: Mapping[str, Resampled]) -> Evaluation:
        """The same with more metrics beside the deciding one."""
        values = {name: found.value for name, found in samples.items()}
        intervals = {name: confidence_interval(found) for name, found in samples.items()} if self.intervals else {}
        return Evaluation(self.metric, self.value, self.n, self.metrics | values, self.intervals | intervals)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "intervals": {name: list(bounds) for name, bounds in self.intervals.items()}}


def metric_of(task: Task) -> ChosenMetric | None:
    """The metric that a task decides by, where it brings rules of its own."""
    return None if task.metric_rules is None else ChosenMetric.from_dict(task.metric_rules)
