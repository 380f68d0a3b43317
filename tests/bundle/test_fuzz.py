# SPDX-License-Identifier: Apache-2.0
"""Some of the mutated bundles of bench/fuzz_bundles.py, and a header that lies about its size."""

import json
import tracemalloc
from pathlib import Path

import pytest

from open_autoglm.errors import CheckpointError
from open_autoglm.models.mapped_tensors import MappedTensors
from tests.bundle.fuzzing import fuzz, make_target


def test_mutated_bundles_are_refused_in_words(tmp_path: Path) -> None:
    found = fuzz(*make_target(tmp_path), tmp_path, count=900, seed=1)
    assert found["accepted"] == []
    assert found["crashes"] == []
    assert found["written_outside"] == []
    assert sum(sum(outcomes.values()) for outcomes in found["outcomes"].values()) == 900
    assert any(outcome.startswith("read") for outcome in found["outcomes"]["rewritten"])  # it does reach the readers


def test_a_header_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    entry = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    for header, length in ((json.dumps(entry), None), ("{}", 1 << 62), ("{}", (1 << 64) - 1)):
        encoded = header.encode()
        file.write_bytes((length or len(encoded)).to_bytes(8, "little") + encoded + b"\0" * 64)
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError):
                MappedTensors(file)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()


def test_a_tensors_name_is_told_in_printable_characters(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    encoded = json.dumps({"a\x1b[2J\n": {"dtype": "F128", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"\0" * 4)
    with pytest.raises(CheckpointError, match="unknown type") as caught:
        MappedTensors(file)
    assert str(caught.value).isprintable()
