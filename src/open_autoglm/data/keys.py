# SPDX-License-Identifier: Apache-2.0
"""What makes two examples the same, as text and as digests that fit millions into memory."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from open_autoglm.chat.messages import Message, Role
from open_autoglm.data.example import Example, PlainExample
from open_autoglm.data.tool_calls import tools_key

DIGEST: Final = 16
"""Bytes of a digest: 128 bits, so that two of a billion different texts share one with a chance of 1 in 10^21."""


_HASHES: Final = tuple(hashlib.blake2b(digest_size=DIGEST, salt=parts.to_bytes(8, "little")) for parts in range(8))
"""Of so many texts, before the first of them."""
_PAIR: Final = 5
_USER_SAID: Final = _HASHES[1].copy()
_USER_SAID.update(b"user::")
_SAID: Final = _HASHES[1].copy()
_SAID.update(b":")
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


def text_key(text: str) -> str:
    """What makes two texts the same: NFC, and any run of white space is one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    # Of white space only the space is printable: most texts are seen to need nothing.
    if text.isprintable() and "  " not in text and text[:1] != " " and text[-1:] != " ":
        return text
    return " ".join(text.split())


def prompt_key(example: Example) -> tuple[str, ...]:
    """What makes two inputs the same."""
    said = [message.role + ":" + _message_key(message) for message in example.messages[:-1]]
    return (f"tools:{tools_key(example)}", *said) if example.tools else tuple(said)


def example_key(example: Example) -> tuple[str, ...]:
    """What makes two examples the same: input and answer, and what is said about the answer."""
    return (*prompt_key(example), *_outcome_key(example))


def digest_texts(parts: Sequence[str]) -> bytes:
    """16 bytes that stand for a sequence of texts."""
    whole = "\0".join(parts).encode("utf-8", "surrogatepass")
    if len(parts) < len(_HASHES):
        digest = _HASHES[len(parts)].copy()  # twice as fast as to begin anew
        digest.update(whole)
        return digest.digest()
    return hashlib.blake2b(whole, digest_size=DIGEST, salt=len(parts).to_bytes(8, "little")).digest()


def example_digests(example: Example) -> bytes:
    """The digests of `prompt_key`, of what is said about the answer, and of the answer alone, end to end."""
    outcome = _outcome_key(example)
    answer = digest_texts(outcome[:1])
    return digest_texts(prompt_key(example)) + (answer if len(outcome) == 1 else digest_texts(outcome)) + answer


def plain_digests(example: PlainExample) -> bytes:
    """`example_digests` of an example of roles and texts alone."""
    if len(example) == _PAIR and example[1] == Role.USER:
        prompt, last = _USER_SAID.copy(), _SAID.copy()  # how each such key begins is hashed already
        prompt.update(text_key(example[2]).encode("utf-8", "surrogatepass"))
        last.update(text_key(example[4]).encode("utf-8", "surrogatepass"))
        answer = last.digest()
        return prompt.digest() + answer + answer
    said = [f"{role}::{text_key(text)}" for role, text in zip(example[1:-2:2], example[2:-2:2], strict=True)]
    answer = digest_texts((f":{text_key(example[-1])}",))
    return digest_texts(said) + answer + answer


@dataclass(frozen=True)
class Keys:
    """Digests of n examples, uint64[n, 2] each.

    prompt: of the input. outcome: of the answer and what is said about it. answer: of the answer alone.
    """

    prompt: np.ndarray
    outcome: np.ndarray
    answer: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """Of input and outcome: of two even digests one more, without hashing the texts again."""
        return self.prompt * _MIX + self.outcome

    @classmethod
    def from_bytes(cls, data: bytes | bytearray, chosen: np.ndarray | None = None) -> Keys:
        """From `example_digests`, end to end. chosen: which of them, all if None."""
        table = np.frombuffer(data, dtype=np.uint64).reshape(-1, 6)
        table = table.copy() if chosen is None else table[chosen]
        return cls(table[:, 0:2], table[:, 2:4], table[:, 4:6])


def as_digests(data: bytes | bytearray) -> np.ndarray:
    """Digests end to end -> uint64[n, 2]."""
    return np.frombuffer(bytes(data), dtype=np.uint64).reshape(-1, 2)


EMPTY_PROMPT: Final = as_digests(digest_texts(()))
"""uint64[1, 2], the digest of an input that there is none of, as of plain text."""


def first_places(keys: np.ndarray) -> np.ndarray:
    """For each row of a table of numbers the place of the first row that is equal: int64[n]. keys: [n, columns]."""
    count = len(keys)
    if not count:
        return np.zeros(0, dtype=np.int64)
    # One number a row sorts several times faster than the rows do; should two rows share one, these are sorted.
    mixed = keys[:, 0].astype(np.uint64)
    for column in range(1, keys.shape[1]):
        mixed *= _MIX
        mixed += keys[:, column].astype(np.uint64, copy=False)
    order = np.argsort(mixed)
    ordered = mixed[order]
    again = ordered[1:] == ordered[:-1]
    places = np.flatnonzero(again)
    if (keys[order[places]] != keys[order[places + 1]]).any():
        order = np.lexsort(keys.T)
        again = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(~again) + 1])
    firsts = np.minimum.reduceat(order, starts)
    places = np.empty(count, dtype=np.int64)
    places[order] = np.repeat(firsts, np.diff(np.append(starts, count)))
    return places


def count_distinct(groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """How many different keys the group of each row has: int64[n]. groups: int64[n], below n. keys: [n, columns]."""
    firsts = first_places(np.column_stack([groups.astype(np.uint64), keys]))
    is_first = firsts == np.arange(len(groups))
    return np.bincount(groups[is_first], minlength=len(groups))[groups]


def _outcome_key(example: Example) -> tuple[str, ...]:
    last = _message_key(example.messages[-1])
    if not example.rejected and example.desirable is None:
        return (last,)
    rejected = [f"not:{_message_key(message)}" for message in example.rejected]
    return (last, *rejected, *(() if example.desirable is None else (f"desirable:{example.desirable}",)))


def _message_key(message: Message) -> str:
    said = message.metadata + ":" + text_key(message.content)
    if not message.tool_calls:
        return said
    return said + "".join([f"\n{call.name}({call.arguments})" for call in message.tool_calls])
