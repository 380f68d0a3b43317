# SPDX-License-Identifier: Apache-2.0
"""Duplicates, contradictions and leaks, exact ones (white space and NFC apart) and near ones, and private data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from open_autoglm.chat.messages import Role
from open_autoglm.data.example import Example, PlainExample, unpack_plain
from open_autoglm.data.example_store import StoredExamples
from open_autoglm.data.findings import FindingKind, FindingLog
from open_autoglm.data.keys import EMPTY_PROMPT, as_digests, count_distinct, digest_texts, first_places
from open_autoglm.data.near_duplicates import group_alike, plain_form
from open_autoglm.data.normalisation import with_texts
from open_autoglm.data.privacy import KINDS, find_private, is_worth_a_look, mask_private
from open_autoglm.task import TaskKind

_QUESTION_AND_ANSWER: Final = 5
_BY_PARTS: Final = (TaskKind.PLAIN_TEXT, TaskKind.QUESTION_ANSWERING)
_KIND_BITS: Final = {kind: 1 << bit for bit, kind in enumerate(KINDS)}
_CACHED_ANSWERS: Final = 4096


def remove_duplicates(examples: Sequence[Example], log: FindingLog) -> StoredExamples:
    """The first of each set of equal examples; the others are noted."""
    examples = StoredExamples.of(examples)
    is_first = first_places(examples.keys.whole) == np.arange(len(examples))
    _note(log, FindingKind.DUPLICATE, "same input and answer as an earlier row; removed", examples, ~is_first)
    return examples.take(is_first)


def note_duplicates(examples: Sequence[Example], log: FindingLog) -> None:
    """Note duplicates of a split that stays as given."""
    examples = StoredExamples.of(examples)
    again = first_places(examples.keys.whole) != np.arange(len(examples))
    _note(log, FindingKind.DUPLICATE, "same input and answer as an earlier row; kept", examples, again)


def note_contradictions(examples: Sequence[Example], log: FindingLog) -> None:
    """Note every example whose input has another answer elsewhere in the same split. Nothing is removed."""
    examples = StoredExamples.of(examples)
    keys = examples.keys
    answers = count_distinct(first_places(keys.prompt), keys.answer)
    has_prompt = (keys.prompt != EMPTY_PROMPT).any(axis=1)
    what = "same input as another row, other answer; kept"
    _note(log, FindingKind.CONTRADICTION, what, examples, has_prompt & (answers > 1))


def remove_leaks(train: Sequence[Example], held_out: Sequence[Example], split: str, log: FindingLog) -> StoredExamples:
    """The training examples that do not occur in `held_out`, so that the held-out split stays as given."""
    train, held_out = StoredExamples.of(train), StoredExamples.of(held_out)
    known = first_places(np.concatenate([held_out.keys.whole, train.keys.whole]))[len(held_out) :] < len(held_out)
    _note(log, FindingKind.LEAK, f"also in the {split} split; removed from train", train, known)
    return train.take(~known)


def likeness_text(example: Example, kind: TaskKind) -> str:
    """The text by which two examples are nearly the same: a passage, running text, or else what was said before."""
    if kind is TaskKind.PLAIN_TEXT or not example.prompt:
        return example.answer
    if kind is TaskKind.QUESTION_ANSWERING:
        passage, separator, _ = example.input_text.rpartition("\n\n")
        if separator:
            return passage
    # A system message is often the same for all, and longer than the question.
    return "\n".join([message.content for message in example.prompt if message.role is not Role.SYSTEM])


def group_examples(examples: Sequence[Example], kind: TaskKind, folder: Path | None = None) -> np.ndarray:
    """Number the examples so that those with nearly the same input have the same number; rows of a table never do.

    folder: for temporary files. Returns int64[n], the place of the first example of each one's group.
    """
    examples = StoredExamples.of(examples)
    if kind is TaskKind.TABULAR:
        return first_places(examples.keys.prompt)
    return group_alike(_LikenessTexts(examples, kind), folder)


class _LikenessTexts:
    """The likeness text of each example, read when it is asked for."""

    def __init__(self, examples: StoredExamples, kind: TaskKind) -> None:
        self._examples, self._kind = examples, kind

    def __len__(self) -> int:
        return len(self._examples)

    def __iter__(self) -> Iterator[str]:
        return map(self._text, self._examples.entries())

    def at(self, places: np.ndarray) -> Iterable[str]:
        return map(self._text, self._examples.take(places).entries())

    def _text(self, entry: Example | PlainExample) -> str:
        if isinstance(entry, Example):
            return likeness_text(entry, self._kind)
        if len(entry) == _QUESTION_AND_ANSWER and entry[1] == Role.USER and self._kind not in _BY_PARTS:
            return entry[2]
        return likeness_text(unpack_plain(entry), self._kind)


def clean_near_duplicates(
    train: StoredExamples,
    held_out: Mapping[str, StoredExamples],
    kind: TaskKind,
    log: FindingLog,
    *,
    remove: bool,
    folder: Path | None = None,
) -> tuple[StoredExamples, np.ndarray]:
    """Note training examples that are nearly the same as an earlier one or as one of a given split.

    Nearly the same are examples with like inputs (see `group_alike`) and the same answer. In a classification, those
    with another answer are noted as contradictions. remove: take the noted duplicates and leaks out of train.
    folder: for temporary files.
    Returns what is left of train, and the group of likeness of each example that is left: int64[n].
    """
    given = list(held_out.values())
    records = np.concatenate([train.records, *(examples.records for examples in given)])
    everything = StoredExamples(train.store, records, np.zeros(len(records)))
    groups = group_examples(everything, kind, folder)
    # An example that is like no other has no other with its answer either.
    in_company = np.flatnonzero(np.bincount(groups, minlength=len(groups))[groups] > 1)
    digests = b"".join([_answer_key(example, kind) for example in everything.take(in_company)])
    pairs = np.arange(len(records))
    pairs[in_company] = in_company[
        first_places(np.column_stack([groups[in_company].astype(np.uint64), as_digests(digests)]))
    ]
    held_out_of = np.full(len(records), len(given), dtype=np.int64)
    place = len(train)
    for number, examples in enumerate(given):
        np.minimum.at(held_out_of, pairs[place : place + len(examples)], number)
        place += len(examples)
    done = "removed" if remove else "kept"
    leaks = held_out_of[pairs[: len(train)]]
    for number, split in enumerate(held_out):
        what = f"nearly the same as a row of the {split} split; {f'{done} from train' if remove else done}"
        _note(log, FindingKind.LEAK, what, train, leaks == number)
    is_leak = leaks < len(given)
    again = ~is_leak & (pairs[: len(train)] != np.arange(len(train)))
    what = f"nearly the same input and the same answer as an earlier row; {done}"
    _note(log, FindingKind.NEAR_DUPLICATE, what, train, again)
    groups = groups[: len(train)]
    if kind is TaskKind.CLASSIFICATION:
        _note_near_contradictions(train, groups, log)
    stays = ~(is_leak | again) if remove else np.ones(len(train), dtype=np.bool_)
    return train.take(stays), groups[stays]


def _answer_key(example: Example, kind: TaskKind) -> bytes:
    if kind is TaskKind.QUESTION_ANSWERING:
        question = example.input_text.rpartition("\n\n")[2]
        return digest_texts((*plain_form(question), *plain_form(example.answer)))
    if kind is TaskKind.PLAIN_TEXT or not example.prompt:
        return digest_texts(())
    calls, rejected, desirable = example.messages[-1].tool_calls, example.rejected, example.desirable
    if not calls and not rejected and desirable is None:
        return _plain_digest(example.answer) if len(example.answer) < _CACHED_ANSWERS else _digest(example.answer)
    called = [part for call in calls for part in (call.name, call.arguments)]
    return digest_texts(
        (*plain_form(example.answer), str(len(called)), *called, str(desirable), *(m.content for m in rejected))
    )


def _digest(answer: str) -> bytes:
    return digest_texts(plain_form(answer))


_plain_digest = lru_cache(_CACHED_ANSWERS)(_digest)


def _note_near_contradictions(train: StoredExamples, groups: np.ndarray, log: FindingLog) -> None:
    keys = train.keys
    nearly = count_distinct(groups, keys.answer)
    exactly = count_distinct(first_places(keys.prompt), keys.answer)
    what = "nearly the same input as another row, other answer; kept"
    _note(log, FindingKind.CONTRADICTION, what, train, (nearly > 1) & (exactly == 1))


def private_kinds(example: Example) -> int:
    """The kinds of personal data and secrets in an example, a bit for each of `privacy.KINDS`."""
    found = 0
    texts: list[str] = []
    for message in (*example.messages, *example.rejected) if example.rejected else example.messages:
        texts.append(message.content)
        if message.reasoning or message.tool_calls:
            texts.extend((message.reasoning, *(call.arguments for call in message.tool_calls)))
    if is_worth_a_look("\n".join(texts)):
        for text in texts:
            for span in find_private(text):
                found |= _KIND_BITS[span.kind]
    return found


def clean_private(examples: StoredExamples, kinds: np.ndarray, log: FindingLog, *, mask: bool) -> StoredExamples:
    """Note each row with personal data or secrets, by their kind.

    kinds: uint8[n], `private_kinds` of each example. mask: put `[EMAIL]`, `[PHONE]`, ... in their place. The examples
    come back in the same order.
    """
    done = "masked" if mask else "kept, --mask-pii masks it"
    places = np.flatnonzero(kinds)
    for found, example in zip(kinds[places].tolist(), examples.take(places), strict=True):
        for kind, bit in _KIND_BITS.items():
            if found & bit:
                log.note_source(FindingKind.PRIVATE, f"{KINDS[kind]}; {done}", example.source)
    return examples.mapped(lambda example: with_texts(example, mask_private), places) if mask else examples


def _note(log: FindingLog, kind: FindingKind, what: str, examples: StoredExamples, chosen: np.ndarray) -> None:
    for example in examples.take(np.flatnonzero(chosen)):
        log.note_source(kind, what, example.source)
