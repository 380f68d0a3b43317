# SPDX-License-Identifier: Apache-2.0
"""Shards: each sample once an epoch for any number of workers, and the same order after a stop at any point."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from open_autoglm.data import TokenizedExamples
from open_autoglm.data.packing import pack_sequences
from open_autoglm.data.shard_ledger import Claim, ShardLedger
from open_autoglm.data.shards import EpochOrder, ShardReader, Shards, write_shards
from open_autoglm.errors import ConfigurationError, DataError, StorageError
from tests.thoroughness import times

CAPACITY = 32


def make(lengths: list[int]) -> TokenizedExamples:
    """Sequence i is made of the number i; the loss counts its second half."""
    ids = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    learn = np.concatenate([np.arange(n) >= n // 2 for n in lengths] or [np.zeros(0, bool)])
    return TokenizedExamples(ids, learn, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shards")
    lengths = np.random.default_rng(0).integers(1, CAPACITY + 1, 150).tolist()
    write_shards(make(lengths), made, capacity=CAPACITY, shard_tokens=400)
    return made


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_sequence_is_in_one_row_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = pack_sequences(np.array(lengths, dtype=np.int64), 50)
    assert sorted(index for row in rows for index in row.tolist()) == list(range(len(lengths)))
    filled = sorted(sum(lengths[index] for index in row) for row in rows)
    assert not filled or filled[-1] <= 50
    assert len(filled) < 2 or filled[0] + filled[1] > 50  # else one row would have done


def fewest_rows(lengths: Sequence[int], capacity: int) -> int:
    """Of all ways to pack: for each subset the fewest rows, and the least that the last of them is filled."""
    best = {0: (1, 0)}
    for subset in range(1, 1 << len(lengths)):
        options: list[tuple[int, int]] = []
        for place, length in enumerate(lengths):
            if subset >> place & 1:
                rows, filled = best[subset ^ 1 << place]
                options.append((rows, filled + length) if filled + length <= capacity else (rows + 1, length))
        best[subset] = min(options)
    return best[(1 << len(lengths)) - 1][0]


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_rows_are_few(lengths: list[int]) -> None:
    fewest = fewest_rows(lengths, 50)
    assert fewest <= len(pack_sequences(np.array(lengths, dtype=np.int64), 50)) <= 11 / 9 * fewest + 6 / 9


def test_short_sequences_waste_little_and_too_long_ones_are_refused() -> None:
    lengths = np.random.default_rng(1).integers(5, 250, 5000)
    rows = pack_sequences(lengths, 1024)
    assert lengths.sum() / (len(rows) * 1024) > 0.98
    with pytest.raises(DataError, match="sequence 1 has 9 tokens and a row holds 8"):
        pack_sequences(np.array([3, 9]), 8)


def test_rows_hold_what_was_written_and_twice_the_same(folder: Path, tmp_path: Path) -> None:
    seen: Counter[int] = Counter()
    for row in ShardReader(folder).epoch():
        assert row.token_ids.tolist() == np.repeat(row.examples, row.lengths).tolist()
        assert row.lengths.sum() == len(row.learn) <= CAPACITY
        for start, length in zip(np.cumsum(row.lengths) - row.lengths, row.lengths, strict=True):
            assert row.learn[start : start + length].tolist() == [n >= length // 2 for n in range(length)]
        seen.update(row.examples.tolist())
    assert seen == Counter(range(150))
    lengths = np.random.default_rng(0).integers(1, CAPACITY + 1, 150).tolist()
    write_shards(make(lengths), tmp_path, capacity=CAPACITY, shard_tokens=400)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(files) > 20
    assert all((folder / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def order(folder: Path, seed: int, epochs: int) -> list[tuple[int, ...]]:
    reader = ShardReader(folder, seed=seed)
    return [tuple(row.examples.tolist()) for _ in range(epochs) for row in reader.epoch()]


@settings(deadline=None, max_examples=times(15, 40))
@given(st.integers(1, 9), st.integers(0, 3))
def test_every_sample_once_an_epoch_for_any_number_of_workers(folder: Path, workers: int, seed: int) -> None:
    readers = [ShardReader(folder, seed=seed, worker=n, workers=workers) for n in range(workers)]
    for epoch in range(2):
        taken = [[tuple(row.examples.tolist()) for row in reader.epoch()] for reader in readers]
        together = [rows for step in itertools.zip_longest(*taken) for rows in step if rows is not None]
        assert sorted(index for rows in together for index in rows) == list(range(150))
        count = len(together)
        assert together == order(folder, seed, 2)[epoch * count : (epoch + 1) * count]


@settings(deadline=None, max_examples=times(20, 60))
@given(st.integers(0, 150), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
def test_a_stop_anywhere_changes_nothing(folder: Path, steps: int, before: int, after: int, seed: int) -> None:
    """Also with another number of workers afterwards."""
    whole = order(folder, seed, 3)
    count = len(whole) // 3
    state = None
    seen: list[tuple[int, ...]] = []
    readers = [ShardReader(folder, seed=seed, worker=n, workers=before) for n in range(before)]
    for _ in range(steps):
        rows = [next(reader_rows, None) for reader_rows in [reader.epoch() for reader in readers]]
        seen.extend(tuple(row.examples.tolist()) for row in rows if row is not None)
        state = json.loads(json.dumps(readers[0].state()))
        assert len(json.dumps(state)) < 200
        if len(seen) >= count:
            break
    readers = [ShardReader(folder, seed=seed, worker=n, workers=after, state=state) for n in range(after)]
    rest = [[tuple(row.examples.tolist()) for row in reader.epoch()] for reader in readers]
    seen.extend(rows for step in itertools.zip_longest(*rest) for rows in step if rows is not None)
    assert seen == whole[: len(seen)]
    assert len(seen) == count


def test_reading_goes_on_epoch_after_epoch_in_another_order(folder: Path) -> None:
    reader = ShardReader(folder)
    count = sum(reader.shards.rows)
    rows = [tuple(row.examples.tolist()) for row in itertools.islice(reader, 2 * count)]
    assert rows == order(folder, 0, 2)
    assert rows[:count] != rows[count:]
    assert order(folder, 1, 1) != order(folder, 0, 1)


@settings(deadline=None, max_examples=times(3, 8))
@given(st.integers(0, 1000), st.integers(1, 5))
def test_workers_that_die_lose_nothing_and_double_nothing(folder: Path, seed: int, workers: int) -> None:
    shards, now, generator = Shards(folder), [0.0], random.Random(seed)
    path = folder / f"ledger-{seed}.json"
    path.unlink(missing_ok=True)
    ledger = ShardLedger(shards, path, lease=10, clock=lambda: now[0])
    done: list[int] = []
    claims: dict[int, tuple[Claim, int]] = {}
    while not ledger.is_finished():
        now[0] += 1
        worker = generator.randrange(workers)
        if worker not in claims:
            claim = ledger.claim(f"worker {worker} since {now[0]}")
            if claim is not None:
                claims[worker] = (claim, claim.start)
            continue
        claim, place = claims[worker]
        if generator.random() < 0.05:
            del claims[worker]
            now[0] += generator.choice([0, 20])
            continue
        if place < len(claim.rows):
            if ledger.report(claim, place + 1):
                done.extend(shards.read(claim.shard, claim.rows[place]).examples.tolist())
                claims[worker] = (claim, place + 1)
            else:
                del claims[worker]
        else:
            del claims[worker]
    assert sorted(done) == list(range(150))
    path.unlink()


def test_states_and_folders_of_something_else_are_refused(folder: Path, tmp_path: Path) -> None:
    state = ShardReader(folder).state()
    with pytest.raises(ConfigurationError, match="other data or another seed"):
        ShardReader(folder, seed=1, state=state)
    with pytest.raises(ConfigurationError, match="worker 2 is none of the 2"):
        ShardReader(folder, worker=2, workers=2)
    with pytest.raises(StorageError, match=r"index\.json"):
        ShardReader(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 9}')
    with pytest.raises(StorageError, match="another version"):
        ShardReader(tmp_path)
    write_shards(make([]), tmp_path / "none", capacity=8)
    with pytest.raises(ConfigurationError, match="holds no rows"):
        ShardReader(tmp_path / "none")
    shards = Shards(folder)
    ShardLedger(shards, tmp_path / "ledger.json").claim("a", epoch=1)
    with pytest.raises(ConfigurationError, match="another epoch"):
        ShardLedger(shards, tmp_path / "ledger.json").claim("a", epoch=0)


def test_the_order_of_an_epoch_needs_no_reading() -> None:
    order = EpochOrder((3, 0, 2), seed=0, epoch=0)
    places = [order.shard_at(position) for position in range(len(order))]
    assert Counter(shard for shard, _ in places) == {0: 3, 2: 2}
    assert sorted(order.rows_of(0)) == [0, 1, 2]
