# SPDX-License-Identifier: Apache-2.0
"""Signatures, bands and shared shingles against plain definitions, one text at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.data.shared_shingles import SharedShingles
from open_autoglm.data.signatures import SIGNATURE, BandKeys, sign

SETS = st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30), min_size=1, max_size=12)


def as_arrays(sets: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([number for one in sets for number in one], np.uint32), np.array([len(one) for one in sets])


def signature(numbers: list[int]) -> list[int]:
    """The definition, for one text: the least number under each of as many orders."""
    generator = np.random.default_rng(0x61757467)
    flips, factors = generator.integers(0, 2**32, (2, SIGNATURE), dtype=np.uint32)
    known = np.array(numbers, dtype=np.uint64)
    return [
        int(((known ^ int(flip)) * (int(factor) | 1) % 2**32).min())
        for flip, factor in zip(flips, factors, strict=True)
    ]


@settings(max_examples=20, deadline=None)
@given(SETS)
def test_a_signature_is_the_least_under_each_order(sets: list[list[int]]) -> None:
    assert sign(*as_arrays(sets)).tolist() == [signature(one) for one in sets]


def test_long_texts_among_short_ones() -> None:
    generator = np.random.default_rng(1)
    sets = [generator.integers(0, 2**32, size).tolist() for size in (3000, 1, 1023, 1024, 70_000, 5, 1500, 90)]
    assert sign(*as_arrays(sets)).tolist() == [signature(one) for one in sets]


@given(SETS)
def test_shares_are_those_of_the_sets(sets: list[list[int]]) -> None:
    small = [[number % 40 for number in one] for one in sets]
    asked: list[int] = []

    def shingles(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(places.tolist())
        return as_arrays([small[place] for place in places.tolist()])

    shared = SharedShingles(shingles)
    pairs = [(one, other) for one in range(len(small)) for other in range(len(small))]
    wanted = [len({*small[a]} & {*small[b]}) / len({*small[a]} | {*small[b]}) for a, b in pairs]
    for half in (pairs[: len(pairs) // 2], pairs):
        one, other = np.array(half, dtype=np.int64).reshape(-1, 2).T
        assert shared.shares(one, other).tolist() == wanted[: len(half)]
    assert len(asked) == len(set(asked))


def test_what_was_kept_is_let_go_of_before_it_is_too_much() -> None:
    asked: list[int] = []

    def shingles(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.extend(places.tolist())
        sets = [np.arange(place, place + 1_500_000, dtype=np.uint32) for place in places.tolist()]
        return np.concatenate(sets), np.full(len(sets), 1_500_000)

    shared = SharedShingles(shingles)
    for place in range(4):
        assert shared.shares(np.array([place]), np.array([place + 1]))[0] == 1_499_999 / 1_500_001
    assert asked[:2] == [0, 1] and len(asked) > 5


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40))
def test_texts_of_one_key_stand_side_by_side(keys: list[int]) -> None:
    bands = BandKeys(len(keys), None)
    signatures = np.array(keys, dtype=np.uint32)[:, None] * np.ones(SIGNATURE, dtype=np.uint32)
    bands.write(0, signatures)
    members, found = bands.repeated(0, np.arange(len(keys)))
    assert sorted(members.tolist()) == [place for place, key in enumerate(keys) if keys.count(key) > 1]
    of_key = [keys[place] for place in members.tolist()]
    runs = [key for place, key in enumerate(of_key) if place == 0 or of_key[place - 1] != key]
    assert len(runs) == len(set(runs)) == len(set(found.tolist()))
