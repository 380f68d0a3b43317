# SPDX-License-Identifier: Apache-2.0
"""Calibration data: token sequences by which a quantiser learns what a model's layers see."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from open_autoglm.bundle import open_bundle
from open_autoglm.chat.detection import built_format, detect_format
from open_autoglm.chat.segments import PromptEncoder
from open_autoglm.chat.template import BEGIN_MASK, BEGIN_SEQUENCE
from open_autoglm.chat.tokenizer_files import has_tokenizer, load_tokenizer
from open_autoglm.compress.derived_model import is_bundle
from open_autoglm.data import TokenizedExamples, encode_examples, load_examples
from open_autoglm.data.example import Example
from open_autoglm.errors import CheckpointError, ConfigurationError, DataError
from open_autoglm.task import Task, TaskKind

DEFAULT_SAMPLES: Final = 128
DEFAULT_LENGTH: Final = 512


@dataclass(frozen=True)
class Calibration:
    """Sequences of tokens, laid end to end.

    token_ids: int32[total]. lengths: int64[n], tokens of each sequence. source: where they came from, for people.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    source: str

    def digest(self) -> str:
        """SHA-256 of the sequences."""
        total = hashlib.sha256(np.ascontiguousarray(self.lengths, dtype="<i8").tobytes())
        total.update(np.ascontiguousarray(self.token_ids, dtype="<i4").tobytes())
        return total.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: how much it is, and its digest."""
        return {
            "source": self.source,
            "sequences": len(self.lengths),
            "tokens": int(self.lengths.sum()),
            "sha256": self.digest(),
        }


def read_calibration(
    data: Path, model: Path, *, samples: int = DEFAULT_SAMPLES, length: int = DEFAULT_LENGTH, seed: int = 0
) -> Calibration:
    """Read a data file of any shape that a build takes, or plain text, laid out as the model reads it.

    data: the file. model: the folder of a bundle or checkpoint, for its tokenizer and chat format. samples, length:
    so many sequences of at most so many tokens; shorter ones are more, so that the tokens are about as many.
    Raises DataError for a file that cannot be used, CheckpointError for a model without a tokenizer,
    ConfigurationError for sizes out of range.
    """
    if samples < 1 or not 8 <= length <= 1 << 20:
        raise ConfigurationError(
            f"--samples must be at least 1 and --sequence-length at least 8, not {samples}, {length}"
        )
    if not has_tokenizer(model):
        raise CheckpointError(
            f"{model} has no tokenizer, so --calibration cannot be read for it; copy the model's tokenizer.json there, "
            "or use --method rtn, which needs no data"
        )
    tokenizer = load_tokenizer(model)
    examples = load_examples(data)
    if all(len(example.messages) == 1 for example in examples):
        sequences = _running_text(examples, tokenizer, length)
    else:
        # Its files are looked at where its weights are read; here only what the manifest says is needed.
        task = open_bundle(model, verify=False).task if is_bundle(model) else None
        chat_format = detect_format(model, tokenizer) if task is None else built_format(task)
        encoded = encode_examples(
            examples, tokenizer, Task(TaskKind.INSTRUCTION), max_length=length, chat_format=chat_format
        )
        sequences = np.split(encoded.token_ids, encoded.offsets[1:-1])
    return choose_sequences(sequences, samples * length, seed=seed, source=data.name)


def calibration_of(examples: TokenizedExamples, *, tokens: int, seed: int, source: str) -> Calibration:
    """Examples that are tokenised already, such as a build's own training data."""
    order = np.random.default_rng(seed).permutation(len(examples))
    enough = int(np.searchsorted(np.cumsum(examples.lengths[order]), tokens)) + 1
    token_ids, _, lengths = examples.gather(np.sort(order[:enough]))
    return Calibration(token_ids, lengths, source)


def choose_sequences(sequences: Sequence[np.ndarray], tokens: int, *, seed: int, source: str) -> Calibration:
    """Some of the sequences, drawn at random, until they have so many tokens.

    sequences: int32[m] each. Raises DataError when there are none.
    """
    usable = [sequence for sequence in sequences if len(sequence) > 1]
    if not usable:
        raise DataError(f"{source}: there is no text to calibrate with")
    order = np.random.default_rng(seed).permutation(len(usable))
    enough = int(np.searchsorted(np.cumsum([len(usable[index]) for index in order]), tokens)) + 1
    chosen = [usable[index] for index in sorted(order[:enough].tolist())]
    lengths = np.array([len(sequence) for sequence in chosen], dtype=np.int64)
    return Calibration(np.concatenate(chosen).astype(np.int32), lengths, source)


def _running_text(examples: Sequence[Example], tokenizer: Tokenizer, length: int) -> list[np.ndarray]:
    """Pieces of plain text, joined again and cut into windows that begin as texts do."""
    encoder = PromptEncoder(tokenizer)
    begin = [token_id for token in (BEGIN_MASK, BEGIN_SEQUENCE) if (token_id := encoder.token_id(token)) is not None]
    ids: list[int] = []
    for example in examples:
        ids.extend(encoder.encode_text(f"{example.answer}\n"))
    body = length - len(begin)
    return [np.array(begin + ids[start : start + body], dtype=np.int32) for start in range(0, len(ids), body)]
