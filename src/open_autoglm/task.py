# SPDX-License-Identifier: Apache-2.0
"""The task: what a data set asks of a model. Inferred by `data`, scored by `search`, guided by `engine`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from open_autoglm.errors import ConfigurationError


class TaskKind(StrEnum):
    """The kinds of work that a built model does."""

    EXTRACTION = "extraction"
    CLASSIFICATION = "classification"
    QUESTION_ANSWERING = "question_answering"
    SUMMARISATION = "summarisation"
    DIALOGUE = "dialogue"
    INSTRUCTION = "instruction"
    TOOL_CALLS = "tool_calls"
    PREFERENCE = "preference"
    TABULAR = "tabular"
    PLAIN_TEXT = "plain_text"

    @classmethod
    def of(cls, name: str) -> TaskKind:
        """The kind named on a command line. Raises ConfigurationError for an unknown one."""
        spelled = name.strip().lower().replace("-", "_")
        spelled = {
            "qa": "question_answering",
            "summarization": "summarisation",
            "text": "plain_text",
            "table": "tabular",
        }.get(spelled, spelled)
        try:
            return cls(spelled)
        except ValueError:
            known = ", ".join(kind.value for kind in cls)
            raise ConfigurationError(f"unknown task '{name}'; choose one of: {known}") from None


METRICS: Final[dict[TaskKind, str]] = {
    TaskKind.EXTRACTION: "exact_match",
    TaskKind.CLASSIFICATION: "accuracy",
    TaskKind.QUESTION_ANSWERING: "f1",
    TaskKind.SUMMARISATION: "rouge_l",
    TaskKind.DIALOGUE: "perplexity",
    TaskKind.INSTRUCTION: "perplexity",
    TaskKind.TOOL_CALLS: "perplexity",
    TaskKind.PREFERENCE: "perplexity",
    TaskKind.TABULAR: "accuracy",
    TaskKind.PLAIN_TEXT: "perplexity",
}
"""The metric that decides for each kind; all rise with quality but perplexity."""


@dataclass(frozen=True)
class Task:
    """What to learn, how to score it, and what a valid answer looks like.

    labels: the label set of a classification, most frequent first.
    answer_schema: a JSON schema (draft 2020-12 keywords) that every answer of an extraction fits. Two annotations
        of ours steer guided decoding and mean nothing to a validator: `x-free-order: true` on an object whose keys
        come in no fixed order, `x-copied: true` on a string that is always words of the input. A third,
        `x-copied-in-order: true` on the whole, says that these are copied from left to right, each behind the last.
    input_column, output_column: where the data came from, for people to read.
    tools: the functions that all training rows of a tool-call task offer, as OpenAI describes them, where all offer the
        same: then a request need not bring them.
    chosen_metric, chosen_rises: the metric that the user decides by instead, and whether it rises with quality.
    metric_rules: how it is computed, where that is a set of rules.
    reads_twice: what users say stands twice before a model of ours (`chat.built.ReadTwiceFormat`).
    """

    kind: TaskKind
    labels: tuple[str, ...] = ()
    answer_schema: dict[str, Any] | None = None
    input_column: str | None = None
    output_column: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    chosen_metric: str | None = None
    chosen_rises: bool = True
    metric_rules: dict[str, Any] | None = None
    reads_twice: bool = False

    @property
    def metric(self) -> str:
        """The metric that decides between models."""
        return self.chosen_metric or METRICS[self.kind]

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric means a better model."""
        return self.chosen_rises if self.chosen_metric else self.metric != "perplexity"

    def with_metric(self, name: str, higher_is_better: bool, rules: dict[str, Any] | None = None) -> Task:
        """The same task, decided by another metric."""
        if name == METRICS[self.kind]:
            return replace(self, chosen_metric=None, chosen_rises=True, metric_rules=None)
        return replace(self, chosen_metric=name, chosen_rises=higher_is_better, metric_rules=rules)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return {
            "kind": self.kind.value,
            "metric": self.metric,
            "labels": list(self.labels),
            "answer_schema": self.answer_schema,
            "input_column": self.input_column,
            "output_column": self.output_column,
            **({"tools": list(self.tools)} if self.tools else {}),
            **({"higher_is_better": self.higher_is_better} if self.chosen_metric else {}),
            **({"metric_rules": self.metric_rules} if self.metric_rules else {}),
            **({"reads_twice": True} if self.reads_twice else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Task:
        """The inverse of `to_dict`."""
        kind = TaskKind(values["kind"])
        metric = values.get("metric") or METRICS[kind]
        return cls(
            kind,
            tuple(values.get("labels") or ()),
            values.get("answer_schema"),
            values.get("input_column"),
            values.get("output_column"),
            tuple(values.get("tools") or ()),
            None if metric == METRICS[kind] else metric,
            bool(values.get("higher_is_better", True)),
            values.get("metric_rules"),
            bool(values.get("reads_twice", False)),
        )
