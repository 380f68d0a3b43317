# SPDX-License-Identifier: Apache-2.0
"""Validation and test examples taken from the training file when none are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from open_autoglm.data.cleaning import group_examples
from open_autoglm.data.example import Example
from open_autoglm.data.example_store import StoredExamples, pairs_of
from open_autoglm.data.json_text import load_json
from open_autoglm.data.keys import as_digests, digest_texts, first_places, prompt_key
from open_autoglm.data.time_order import split_by_time
from open_autoglm.task import TaskKind

HELD_OUT_SHARE: Final = 0.1
HELD_OUT_MOST: Final = 2000
_TEXT_RUN: Final = 16


def split_examples(
    examples: Sequence[Example],
    kind: TaskKind,
    *,
    valid: bool,
    test: bool,
    seed: int,
    alike: np.ndarray | None = None,
    times: np.ndarray | None = None,
) -> tuple[StoredExamples, StoredExamples, StoredExamples]:
    """Take a tenth of the examples, at most 2,000, for validation and as many for test; each only if asked for.

    Examples with nearly the same input, the same passage or stretch of text stay together. Labels, or the sets of
    keys of JSON answers, keep their shares; a label that occurs once stays in train. With times, the latest examples
    are the test, those before them validation, and what is like an earlier example stays with it.
    alike: int64[n], the group of likeness of each example, found here if None. times: float64[n], not a number where
    there is none.
    Returns train, valid and test, each in file order; a pure function of the examples and the seed.
    """
    examples = StoredExamples.of(examples)
    if alike is None:
        alike = group_examples(examples, kind)
    groups = _Groups(_join(_exact_groups(examples, kind), alike), seed)
    size = min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(examples))))
    if times is not None:
        late_valid, late_test = split_by_time(times, size, valid=valid, test=test)
        chosen_test = groups.all_of(late_test)
        chosen_valid = groups.all_of(late_valid | late_test) & ~chosen_test
    else:
        ordered = _order(examples, groups, kind, size)
        chosen_valid = chosen_test = np.zeros(len(examples), dtype=np.bool_)
        if valid:
            chosen_valid = groups.every_nth(ordered, size, 0.75, chosen_valid)
        if test:
            chosen_test = groups.every_nth(ordered, size, 0.25, chosen_valid)
    return examples.take(~(chosen_valid | chosen_test)), examples.take(chosen_valid), examples.take(chosen_test)


class _Groups:
    """Examples that must stay together, in a random order of the groups.

    of: int64[n], the group of each example, any number. sizes: int64[groups]. firsts: int64[groups], the first
    example of each group.
    """

    def __init__(self, of: np.ndarray, seed: int) -> None:
        _, first, inverse, sizes = np.unique(of, return_index=True, return_inverse=True, return_counts=True)
        shuffled = np.random.default_rng((seed, 0x5B117)).permutation(len(first))
        place = np.empty(len(first), dtype=np.int64)
        place[shuffled] = np.arange(len(first))
        self.of = place[inverse]
        self.sizes = sizes[shuffled]
        self.firsts = first[shuffled]

    def all_of(self, chosen: np.ndarray) -> np.ndarray:
        """bool[n], the examples of those groups of which every example is chosen. chosen: bool[n]."""
        count = np.bincount(self.of, weights=chosen, minlength=len(self.sizes))
        return (count == self.sizes)[self.of]

    def every_nth(self, ordered: np.ndarray, size: int, phase: float, taken: np.ndarray) -> np.ndarray:
        """Systematic sampling: groups at even distances along an order, until they hold about `size` examples.

        ordered: int64[k], groups. taken: bool[n], examples that are not to be chosen. Returns bool[n].
        """
        if not len(ordered):
            return np.zeros(len(self.of), dtype=np.bool_)
        ends = np.cumsum(self.sizes[ordered])
        chosen = np.zeros(len(self.sizes), dtype=np.bool_)
        interval = float(ends[-1]) / size
        mark, place = phase * interval, 0
        while (place := max(place, int(np.searchsorted(ends, mark, side="right")))) < len(ordered):
            group = ordered[place]
            if not taken[self.firsts[group]]:
                chosen[group] = True
                mark += interval * float(self.sizes[group])
            place += 1
        return chosen[self.of]


def _order(examples: StoredExamples, groups: _Groups, kind: TaskKind, size: int) -> np.ndarray:
    """The groups that may be held out, those of a stratum side by side: int64[k]."""
    everything = np.arange(len(groups.sizes))
    strata = _strata(examples, groups.firsts, kind)
    if strata is None:
        ordered = everything
    else:
        common = np.bincount(strata)[strata] > 1
        ordered = np.argsort(strata, kind="stable")
        alone = ordered[~common[ordered]]
        ordered = ordered[common[ordered]]
        if kind not in (TaskKind.CLASSIFICATION, TaskKind.TABULAR):
            ordered = np.concatenate([ordered, alone])
        if groups.sizes[ordered].sum() < len(examples) // 2:
            ordered = everything
    # A group larger than a split would be all of it.
    fitting = ordered[groups.sizes[ordered] <= size]
    return fitting if len(fitting) else ordered


def _join(exact: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """int64[n]: examples have one number if a chain of groups of the two kinds leads from one to the other."""
    joined = exact
    kinds = [np.unique(groups, return_inverse=True)[1] for groups in (exact, alike)]
    while True:
        before = joined
        for groups in kinds:
            least = np.full(int(groups.max(initial=-1)) + 1, len(groups), dtype=np.int64)
            np.minimum.at(least, groups, joined)
            joined = least[groups]
        if np.array_equal(before, joined):
            return joined


def _exact_groups(examples: StoredExamples, kind: TaskKind) -> np.ndarray:
    """int64[n]: the same number for the same input, for the same passage, and for stretches of running text."""
    count = len(examples)
    if kind is TaskKind.PLAIN_TEXT:
        return np.arange(count) // max(1, min(_TEXT_RUN, count // 40))
    if kind is TaskKind.QUESTION_ANSWERING:
        digests = bytearray()
        for example in examples:
            passage, separator, _ = example.input_text.rpartition("\n\n")
            digests += digest_texts((passage,) if separator else prompt_key(example))
        return first_places(as_digests(digests))
    return first_places(examples.keys.prompt)


def _strata(examples: StoredExamples, places: np.ndarray, kind: TaskKind) -> np.ndarray | None:
    """int64[k], the number of the label or set of keys at each place, in their order; None where there are none."""
    order = np.argsort(places)  # read in the order of the file
    chosen = examples.take(places[order])
    if kind in (TaskKind.CLASSIFICATION, TaskKind.TABULAR):
        names = (answer.strip() for _, answer in pairs_of(chosen))
    elif kind is TaskKind.EXTRACTION:
        names = (" ".join(sorted(_keys(load_json(answer)))) for _, answer in pairs_of(chosen))
    else:
        return None
    numbers: dict[str, int] = {}
    found = np.fromiter((numbers.setdefault(name, len(numbers)) for name in names), np.int64, len(chosen))
    rank = {name: place for place, name in enumerate(sorted(numbers))}
    strata = np.empty(len(chosen), dtype=np.int64)
    strata[order] = np.fromiter((rank[name] for name in numbers), np.int64, len(numbers))[found]
    return strata


def _keys(value: Any) -> set[str]:
    """The keys of all objects in a JSON value."""
    found: set[str] = set()
    left = [value]
    while left:
        inner = left.pop()
        if isinstance(inner, dict):
            found.update(inner)
            left.extend(inner.values())
        elif isinstance(inner, list):
            left.extend(inner)
    return found
