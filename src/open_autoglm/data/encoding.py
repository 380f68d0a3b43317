# SPDX-License-Identifier: Apache-2.0
"""Examples -> token ids with a loss mask, end to end in flat arrays that can be mapped from disk."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from open_autoglm.chat.detection import built_format
from open_autoglm.chat.format import ChatFormat
from open_autoglm.chat.messages import Message, Role
from open_autoglm.chat.segments import PromptEncoder, Segment
from open_autoglm.chat.template import BEGIN_MASK, BEGIN_SEQUENCE, END_OF_TEXT, ROLE_TOKENS
from open_autoglm.chat.tools import read_tools
from open_autoglm.data.example import Example
from open_autoglm.errors import ConfigurationError, StorageError
from open_autoglm.storage import explained, replacing
from open_autoglm.task import Task, TaskKind

_BEGIN: Final = 2
_LEAST_LENGTH: Final = 8
_CHUNK: Final = 4096
_FILES: Final = {"token_ids": np.int32, "learn": np.bool_, "offsets": np.int64, "shortened": np.int64}


def _no_rows() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


UNTAGGED: Final = -1
"""The tag of a token of which nothing is said."""


@dataclass(frozen=True)
class TokenTags:
    """values: int32[total], a tag for each token, or -1 where nothing is said. count: how many tags there are."""

    values: np.ndarray
    count: int


@dataclass(frozen=True)
class TokenizedExamples:
    """Sequences of tokens, laid end to end.

    token_ids: int32[total]. learn: bool[total], whether the loss counts a token. offsets: int64[n + 1], sequence i is
    `token_ids[offsets[i]:offsets[i + 1]]`. shortened: int64[m], the sequences that were longer than allowed.
    tags: what each token is besides, for training; not saved.
    """

    token_ids: np.ndarray
    learn: np.ndarray
    offsets: np.ndarray
    shortened: np.ndarray = field(default_factory=_no_rows)
    tags: TokenTags | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64[n], tokens of each sequence."""
        return np.diff(np.asarray(self.offsets))

    def first(self, count: int) -> TokenizedExamples:
        """The first `count` sequences."""
        end = int(self.offsets[count])
        tags = None if self.tags is None else TokenTags(self.tags.values[:end], self.tags.count)
        shortened = self.shortened[self.shortened < count]
        return TokenizedExamples(self.token_ids[:end], self.learn[:end], self.offsets[: count + 1], shortened, tags)

    def gather(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The chosen sequences laid end to end.

        chosen: int64[k], indices. Returns token ids int32[total], learn bool[total] and lengths int64[k].
        """
        places, lengths = self._places(chosen)
        return np.asarray(self.token_ids[places]), np.asarray(self.learn[places]), lengths

    def gather_tags(self, chosen: np.ndarray) -> TokenTags | None:
        """The tags of the tokens that `gather` returns, if there are any."""
        return None if self.tags is None else TokenTags(self.tags.values[self._places(chosen)[0]], self.tags.count)

    def _places(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of the chosen sequences lie, int64[total], and the sequences' lengths."""
        offsets = np.asarray(self.offsets)
        starts = offsets[chosen]
        lengths = offsets[np.asarray(chosen) + 1] - starts
        firsts = np.cumsum(lengths) - lengths
        return np.arange(int(lengths.sum())) + np.repeat(starts - firsts, lengths), lengths

    def save(self, folder: Path) -> None:
        """Write one `.npy` file per array. Raises StorageError when the disk refuses."""
        for name, dtype in _FILES.items():
            with replacing(folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, np.ascontiguousarray(getattr(self, name), dtype=dtype), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> TokenizedExamples:
        """Map what `save` wrote, without reading it. Raises StorageError for a folder that holds something else."""
        arrays: dict[str, np.ndarray] = {}
        for name, dtype in _FILES.items():
            path = folder / f"{name}.npy"
            try:
                with explained(path, "read"):
                    arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError:
                arrays[name] = _load_empty(path)
            if arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise StorageError(f"{path} is not what was written there; tokenise the data again")
        total = len(arrays["token_ids"])
        offsets = arrays["offsets"]
        if len(arrays["learn"]) != total or not len(offsets) or offsets[0] != 0 or offsets[-1] != total:
            raise StorageError(f"{folder}: the arrays do not belong together; tokenise the data again")
        return cls(arrays["token_ids"], arrays["learn"], offsets, arrays["shortened"])


def encode_examples(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    task: Task,
    *,
    max_length: int,
    chat_format: ChatFormat | None = None,
) -> TokenizedExamples:
    """Lay out examples in GLM's chat format, or plain text between its begin and end tokens, and tokenise them.

    A few thousand at a time: of the others there are five bytes a token.

    A longer example than `max_length` tokens loses the beginning of its prompt, after the two begin tokens, and
    keeps its whole answer; an answer that is longer by itself, or plain text, loses its end. Either is listed in
    `shortened`.
    The prompt of an answer is token for token what a server makes of the same messages and tools.
    chat_format: that of the model to train; ours for the task if not given.
    Raises ConfigurationError for a max_length under 8, CheckpointError if the tokenizer lacks a control token.
    """
    if max_length < _LEAST_LENGTH:
        raise ConfigurationError(f"max_length {max_length} is too short for a dialogue; give at least {_LEAST_LENGTH}")
    is_plain = task.kind is TaskKind.PLAIN_TEXT
    encoder = PromptEncoder(tokenizer)
    assistant = tokenizer.token_to_id(ROLE_TOKENS[Role.ASSISTANT])
    ids, learn = array("i"), bytearray()
    offsets, shortened = array("q", [0]), array("q")
    left = iter(examples)
    while some := list(itertools.islice(left, _CHUNK)):
        laid_out = [
            _lay_out_text(example.answer) if is_plain else lay_out_example(example, task, chat_format)
            for example in some
        ]
        for stretches in encoder.encode_many(laid_out):
            row = [token for part, _ in stretches for token in part]
            marks = [counts for part, counts in stretches for _ in part]
            if len(row) > max_length:
                shortened.append(len(offsets) - 1)
                keep = _kept(row, max_length, None if is_plain else assistant)
                row = [row[place] for place in keep]
                marks = [marks[place] for place in keep]
            ids.extend(row)
            learn.extend(marks)
            offsets.append(len(ids))
    return TokenizedExamples(
        np.frombuffer(ids, dtype=np.int32),
        np.frombuffer(learn, dtype=np.bool_),
        np.frombuffer(offsets, dtype=np.int64),
        np.frombuffer(shortened, dtype=np.int64),
    )


def lay_out_example(example: Example, task: Task, chat_format: ChatFormat | None = None) -> list[Segment]:
    """A dialogue as it is learnt; in our format for the task if none is given.

    A turn whose reasoning the format leaves out, as history, is not learnt: it would teach to answer without thinking.
    A task whose answers are guided leaves no room for reasoning, so there all of it is left out.
    """
    chat_format = chat_format or built_format(task)
    guided = bool(task.labels or task.answer_schema is not None)
    messages: list[Message] = []
    for place, message in enumerate(example.messages):
        thought = bool(message.reasoning)
        if thought and guided:
            messages.append(replace(message, reasoning=""))
        elif thought and chat_format.thinks and not chat_format.keeps_reasoning(example.messages, place):
            messages.append(replace(message, learn=False))
        else:
            messages.append(message)
    return chat_format.render(messages, read_tools(example.tools))


def _lay_out_text(text: str) -> list[Segment]:
    return [
        Segment(BEGIN_MASK, control=True),
        Segment(BEGIN_SEQUENCE, control=True),
        Segment(text, learn=True),
        Segment(END_OF_TEXT, control=True, learn=True),
    ]


def _kept(row: Sequence[int], max_length: int, assistant: int | None) -> list[int]:
    """The places of a long sequence that stay."""
    if assistant is None:
        return list(range(max_length))
    answer = len(row) - 1 - row[::-1].index(assistant)
    room = max_length - _BEGIN - (len(row) - answer)
    if room < 0:
        return [*range(_BEGIN), *range(answer, answer + max_length - _BEGIN)]
    return [*range(_BEGIN), *range(answer - room, len(row))]


def _load_empty(path: Path) -> np.ndarray:
    """An array without elements, which cannot be mapped."""
    try:
        with explained(path, "read"):
            return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise StorageError(f"{path} is not an array file ({error}); tokenise the data again") from None
