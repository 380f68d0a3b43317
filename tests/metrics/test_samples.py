# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals against SciPy's bootstrap and against what they promise."""

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from open_autoglm.metrics import answer_samples, confidence_interval, perplexity_samples
from open_autoglm.metrics.samples import WholeFunction, mean, overlap, share
from open_autoglm.task import Task, TaskKind


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).beta(2, 1, 400)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=1).confidence_interval
    low, high = confidence_interval(mean(values), resamples=4000)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert low < values.mean() < high
    assert confidence_interval(mean(values)) == confidence_interval(mean(values))


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        low, high = confidence_interval(mean(generator.random(150) < 0.7), resamples=400, seed=seed)
        held += low <= 0.7 <= high
    assert 0.90 <= held / 300 <= 0.985


def test_every_metric_over_a_resample_is_the_metric_of_those_examples() -> None:
    generator = np.random.default_rng(2)
    labels = [str(label) for label in generator.integers(0, 4, 60)]
    answers = [label if generator.random() < 0.6 else str(generator.integers(0, 5)) for label in labels]
    samples = answer_samples(Task(TaskKind.CLASSIFICATION), answers, labels)
    drawn = generator.integers(0, 60, (5, 60))
    weights = np.stack([np.bincount(row, minlength=60) for row in drawn])
    for row, macro, right in zip(
        drawn, samples["macro_f1"].over(weights), samples["accuracy"].over(weights), strict=True
    ):
        some, wanted = [answers[place] for place in row], [labels[place] for place in row]
        expected = f1_score(wanted, some, labels=sorted(set(wanted)), average="macro", zero_division=0)
        assert macro == pytest.approx(expected)
        assert right == pytest.approx(np.mean([a == b for a, b in zip(some, wanted, strict=True)]))


def test_perplexity_is_over_tokens_and_bits_over_bytes() -> None:
    samples = perplexity_samples(np.array([10.0, 30.0]), np.array([10, 10]), np.array([40, 40]))
    assert samples["perplexity"].value == pytest.approx(np.exp(2.0))
    assert samples["bits_per_byte"].value == pytest.approx(0.5 / np.log(2))
    low, high = confidence_interval(samples["perplexity"])
    assert (low, high) == pytest.approx((np.exp(1.0), np.exp(3.0)))


def test_shares_of_nothing_and_overlaps_of_nothing() -> None:
    assert share([(0, 0)]).value == 1.0
    assert share([(1, 1), (0, 1), (0, 0)]).value == 0.5
    assert overlap([(0, 0, 0)]).value == 0.0
    assert overlap([(1, 2, 1), (0, 0, 1)]).value == pytest.approx(2 * 1 / 4)


def test_a_whole_function_is_called_on_resamples() -> None:
    answers, references = ["a", "b", "c"] * 20, ["a", "b", "x"] * 20
    right = WholeFunction(
        lambda some, wanted: sum(a == b for a, b in zip(some, wanted, strict=True)) / len(wanted), answers, references
    )
    assert right.value == pytest.approx(2 / 3)
    low, high = confidence_interval(right)
    theirs = confidence_interval(mean([a == b for a, b in zip(answers, references, strict=True)]), resamples=200)
    assert (low, high) == pytest.approx(theirs)


def test_no_examples_have_no_interval() -> None:
    with pytest.raises(ValueError, match="without examples"):
        confidence_interval(mean([]))
