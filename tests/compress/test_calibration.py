# SPDX-License-Identifier: Apache-2.0
"""Calibration data: texts and examples laid out as the model will read them, and the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from open_autoglm.compress.calibration import Calibration, calibration_of, read_calibration
from open_autoglm.data import TokenizedExamples
from open_autoglm.errors import CheckpointError, ConfigurationError, DataError
from tests.engine.tiny_bundle import make_bundle, make_tokenizer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("calibration") / "bundle")


def sequences(data: Calibration) -> list[list[int]]:
    return [part.tolist() for part in np.split(data.token_ids, np.cumsum(data.lengths)[:-1])]


def test_examples_are_laid_out_in_the_models_chat_format(bundle: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"play song {number}", "response": f'{{"n": {number}}}'} for number in range(40)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    data = read_calibration(file, bundle, samples=4, length=64, seed=3)
    tokenizer = make_tokenizer()
    texts = [tokenizer.decode(row, skip_special_tokens=False) for row in sequences(data)]
    assert all(text.startswith("[gMASK]<sop><|user|>") and "<|assistant|>" in text for text in texts)
    assert len(set(texts)) == len(texts) < 40
    assert 4 * 64 <= int(data.lengths.sum()) < 5 * 64 + 64
    assert data.digest() == read_calibration(file, bundle, samples=4, length=64, seed=3).digest()
    assert data.digest() != read_calibration(file, bundle, samples=4, length=64, seed=4).digest()


def test_running_text_is_cut_into_windows_that_begin_as_texts_do(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("The boat left the harbour at dawn, and nobody saw it go.\n" * 60, encoding="utf-8")
    data = read_calibration(file, bundle, samples=6, length=32)
    begin = make_tokenizer().encode("[gMASK]<sop>", add_special_tokens=False).ids
    rows = sequences(data)
    assert all(row[:2] == begin and len(row) <= 32 for row in rows)
    assert sum(len(row) == 32 for row in rows) >= len(rows) - 1
    assert data.to_dict()["source"] == "story.txt"


def test_a_builds_own_examples_are_taken_until_there_are_enough_tokens() -> None:
    lengths = np.arange(1, 41)
    examples = TokenizedExamples(
        np.arange(lengths.sum(), dtype=np.int32),
        np.ones(lengths.sum(), dtype=bool),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    data = calibration_of(examples, tokens=200, seed=1, source="training")
    assert 200 <= data.lengths.sum() < 200 + 41
    starts = {int(start): int(length) for start, length in zip(examples.offsets[:-1], lengths, strict=True)}
    for row in sequences(data):
        assert starts[row[0]] == len(row)
        assert row == list(range(row[0], row[0] + len(row)))
    everything = calibration_of(examples, tokens=10_000, seed=1, source="training")
    assert everything.token_ids.tolist() == list(range(int(lengths.sum())))


def test_what_cannot_calibrate_is_refused(bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a few words\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="--samples must be at least 1"):
        read_calibration(text, bundle, samples=0)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        read_calibration(text, tmp_path)
    with pytest.raises(DataError):
        read_calibration(tmp_path / "nothing.txt", bundle)
