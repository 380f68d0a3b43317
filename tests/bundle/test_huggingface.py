# SPDX-License-Identifier: Apache-2.0
"""A tokenizer file of any origin is read or refused in words, also where the library panics."""

import json
from pathlib import Path

import pytest

from open_autoglm.bundle.huggingface import read_tokenizer
from open_autoglm.chat.tokenizer_files import load_tokenizer
from open_autoglm.errors import BundleError, CheckpointError

BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"{}",
        b"[" * 50_000,
        json.dumps({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}).encode(),
        # The library cuts as many bytes off a token as this prefix has, and there are fewer.
        json.dumps({"version": "1.0", "model": {**BPE, "continuing_subword_prefix": "##########"}}).encode(),
        # An error message with a NUL in it ended the whole process.
        json.dumps({"version": "1.0", "model": {**BPE, "continuing_subword_prefix": "\0"}}).encode(),
    ],
)
def test_what_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"not a tokenizer|NUL"):
        read_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=r"not a tokenizer|NUL"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_is_read_also_one_that_knows_how_json_writes_nul(tmp_path: Path) -> None:
    model = {**BPE, "vocab": {**BPE["vocab"], "\\u0000": 3}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    assert read_tokenizer(tmp_path).encode("ab").ids == [2]
    assert read_tokenizer(tmp_path).token_to_id("\\u0000") == 3
