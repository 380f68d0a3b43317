# SPDX-License-Identifier: Apache-2.0
"""Scoring a model on examples: answers decoded by the engine under the task's guide, or how likely they are."""

from open_autoglm.evaluate.answering import answer_room, evaluate_answers, evaluate_calls, measure_latency, score_texts
from open_autoglm.evaluate.bundles import EVALUATION_FILE, evaluate_bundle, with_metric
from open_autoglm.evaluate.engines import engine_of
from open_autoglm.evaluate.evaluation import Evaluation
from open_autoglm.evaluate.likelihood import evaluate_perplexity, nats_of_examples

__all__ = [
    "EVALUATION_FILE",
    "Evaluation",
    "answer_room",
    "engine_of",
    "evaluate_answers",
    "evaluate_bundle",
    "evaluate_calls",
    "evaluate_perplexity",
    "measure_latency",
    "nats_of_examples",
    "score_texts",
    "with_metric",
]
