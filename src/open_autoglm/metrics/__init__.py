# SPDX-License-Identifier: Apache-2.0
"""Scores of answers against references, their confidence intervals, and metrics of the user's own; without a model."""

from open_autoglm.metrics.answers import (
    answer_samples,
    closed_fields,
    macro_f1,
    perplexity,
    perplexity_samples,
    score_answers,
)
from open_autoglm.metrics.calls import Calls, call_samples, score_calls
from open_autoglm.metrics.chosen import ChosenMetric, choose_metric, register_metric
from open_autoglm.metrics.samples import Resampled, Samples, confidence_interval
from open_autoglm.metrics.texts import rouge_l, rouge_n, token_f1

__all__ = [
    "Calls",
    "ChosenMetric",
    "Resampled",
    "Samples",
    "answer_samples",
    "call_samples",
    "choose_metric",
    "closed_fields",
    "confidence_interval",
    "macro_f1",
    "perplexity",
    "perplexity_samples",
    "register_metric",
    "rouge_l",
    "rouge_n",
    "score_answers",
    "score_calls",
    "token_f1",
]
